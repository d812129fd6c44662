/** Examples in groups of activation strength, not only the strongest: tabs choose a group, all are shown first. */

import { useState } from "preact/hooks";
import { count, fixed, groupName, percent } from "../lib/format";
import { setParams, usePlace } from "../lib/place";
import type { Group, LatentDetail } from "../lib/types";
import { Example } from "./Example";
import { Empty } from "./Message";
import { Segmented } from "./Segmented";

const SHOWN = { top: 5, other: 2, alone: 100 };

function GroupList({ group, index, max, breaks, alone }: { group: Group; index: number; max: number; breaks: boolean; alone: boolean }) {
  const [all, setAll] = useState(false);
  const limit = all ? Infinity : alone ? SHOWN.alone : index === 0 ? SHOWN.top : SHOWN.other;
  const hidden = group.examples.length - limit;
  return (
    <section class="group" aria-label={groupName(group.name)} data-testid={`group-${group.name}`}>
      <header>
        <h3>{groupName(group.name)}</h3>
        <span class="range">
          {fixed(group.low, 2)} – {fixed(group.high, 2)}
        </span>
        <span class="share">{percent(group.share)} of firings</span>
      </header>
      {group.examples.slice(0, limit).map((example, at) => (
        <Example key={at} id={`${index}.${at}`} example={example} max={max} breaks={breaks} />
      ))}
      {hidden > 0 && (
        <button type="button" class="button ghost small more" onClick={() => setAll(true)}>
          Show {count(hidden)} more
        </button>
      )}
    </section>
  );
}

function Scale({ max }: { max: number }) {
  return (
    <span class="scale" title="One colour scale for all examples of this latent">
      0 <span class="ramp" /> {fixed(max, 2)}
    </span>
  );
}

export function Examples({ latent }: { latent: LatentDetail }) {
  const { params } = usePlace();
  const breaks = params.get("breaks") !== "0";
  const wanted = params.get("group");
  const names = latent.groups.map((group) => group.name);
  const chosen = wanted !== null && names.includes(wanted) ? wanted : "all";
  if (latent.groups.length === 0) return <Empty text={latent.reason ?? "No examples in this index."} />;
  const choices = [{ value: "all", label: "All" }, ...names.map((name) => ({ value: name, label: groupName(name) }))];
  return (
    <div class="examples">
      <div class="toolbar">
        <Segmented label="Group of examples" choices={choices} value={chosen} onChange={(value) => setParams({ group: value === "all" ? null : value, lock: null })} />
        <label class="check">
          <input type="checkbox" checked={breaks} onChange={(event) => setParams({ breaks: event.currentTarget.checked ? null : 0 })} />
          Line breaks
        </label>
        <Scale max={latent.max} />
      </div>
      {latent.groups.map((group, index) =>
        chosen === "all" || chosen === group.name ? (
          <GroupList key={`${latent.index}-${group.name}`} group={group} index={index} max={latent.max} breaks={breaks} alone={chosen !== "all"} />
        ) : null,
      )}
    </div>
  );
}
