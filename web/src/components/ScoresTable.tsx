/** Every score beside the controls that it must beat, with a small drawing of where each stands. */

import { count, percent, rowNumbers } from "../lib/format";
import { setParams, usePlace } from "../lib/place";
import type { Score } from "../lib/types";

const CONTROL_NAMES: Record<string, string> = { random: "Random", pca: "PCA", mean: "Mean" };
const CONTROL_TITLES: Record<string, string> = {
  random: "A random dictionary with the same number of active latents",
  pca: "As many principal components as the dictionary has active latents",
  mean: "The mean activation in place of every activation",
};

/** Scores that are shares of the latents are written as the densities are. */
const SHARES = new Set(["dead_share", "dense_share"]);

function writer(score: Score): (value: number | null) => string {
  if (SHARES.has(score.name)) return (value) => (value === null ? "—" : percent(value));
  return rowNumbers(score.value, score.low, score.high);
}

/** The controls that any score has, known ones first. */
function controlNames(scores: Score[]): string[] {
  const all = new Set(scores.flatMap((score) => Object.keys(score.controls)));
  const known = Object.keys(CONTROL_NAMES).filter((name) => all.has(name));
  return [...known, ...[...all].filter((name) => !known.includes(name))];
}

/** Does this control do as well as the dictionary, or better? Null where it cannot be said. */
function beats(score: Score, control: number | null | undefined): boolean | null {
  if (score.value === null || score.better === null || control === null || control === undefined) return null;
  return score.better === "lower" ? control <= score.value : control >= score.value;
}

function Direction({ score }: { score: Score }) {
  if (!score.better) return null;
  return (
    <span class="direction" title={`${score.better} is better`}>
      {score.better === "lower" ? "↓ lower is better" : "↑ higher is better"}
    </span>
  );
}

function Standing({ score, names }: { score: Score; names: string[] }) {
  const controls = names.flatMap((name) => {
    const value = score.controls[name];
    return value === null || value === undefined ? [] : [{ name, value }];
  });
  const write = writer(score);
  if (score.value === null || controls.length === 0) return <div class="standing empty" />;
  const all = [score.value, score.low ?? score.value, score.high ?? score.value, ...controls.map((control) => control.value)];
  const unit = all.every((value) => value >= 0 && value <= 1);
  const low = unit ? 0 : Math.min(...all);
  const high = unit ? 1 : Math.max(...all);
  const at = (value: number) => `${(100 * (value - low)) / (high - low || 1)}%`;
  return (
    <div class="standing" aria-hidden="true">
      {score.low !== null && score.high !== null && (
        <span class="interval" style={{ left: at(score.low), width: `calc(${at(score.high)} - ${at(score.low)})` }} />
      )}
      {controls.map((control) => (
        <span key={control.name} class={`mark ${control.name}`} style={{ left: at(control.value) }} title={`${CONTROL_NAMES[control.name] ?? control.name}: ${write(control.value)}`} />
      ))}
      <span class="mark own" style={{ left: at(score.value) }} title={`This dictionary: ${write(score.value)}`} />
    </div>
  );
}

function Row({ score, names }: { score: Score; names: string[] }) {
  const write = writer(score);
  const interval = score.low !== null && score.high !== null ? `${write(score.low)} – ${write(score.high)}` : null;
  return (
    <tr data-testid={`score-${score.name}`}>
      <th scope="row">
        {score.label}
        <Direction score={score} />
        {score.value === null && score.reason && <span class="why">{score.reason}</span>}
      </th>
      <td class={score.value === null ? "own undefined" : "own"} title={interval ? `95 % interval ${interval}, n = ${count(score.n)}` : (score.reason ?? undefined)}>
        <b>{write(score.value)}</b>
        {interval && <span class="interval-text">{interval}</span>}
      </td>
      <td class="standing-cell">
        <Standing score={score} names={names} />
      </td>
      {names.map((name) => {
        const worse = beats(score, score.controls[name]);
        return (
          <td key={name} class={worse ? "control beaten" : "control"} data-name={CONTROL_NAMES[name] ?? name} title={worse ? "This control does as well as the dictionary, or better" : undefined}>
            {name in score.controls ? write(score.controls[name] ?? null) : ""}
          </td>
        );
      })}
      <td class="n">{score.n > 0 ? count(score.n) : ""}</td>
    </tr>
  );
}

/** The scores that say most; where an evaluation has many more, the others wait behind a button. */
const MAIN = ["l0", "fvu", "cosine", "loss_recovered", "kl_score", "dead_share"];

function mainScores(scores: Score[]): Score[] {
  const chosen = scores.filter((score) => MAIN.includes(score.name));
  return scores.length <= 8 || chosen.length < 3 ? scores : chosen;
}

export function ScoresTable({ scores }: { scores: Score[] }) {
  const { params } = usePlace();
  const names = controlNames(scores);
  const main = mainScores(scores);
  const all = params.get("scores") === "all";
  return (
    <>
      <table class="scores">
        <thead>
          <tr>
            <th scope="col">Score</th>
            <th scope="col" class="right">Dictionary</th>
            <th scope="col" class="standing-cell" aria-label="Where the scores stand" />
            {names.map((name) => (
              <th scope="col" class="right" key={name} title={CONTROL_TITLES[name]}>
                {CONTROL_NAMES[name] ?? name}
              </th>
            ))}
            <th scope="col" class="right n">n</th>
          </tr>
        </thead>
        <tbody>
          {(all ? scores : main).map((score) => (
            <Row key={score.name} score={score} names={names} />
          ))}
        </tbody>
      </table>
      <div class="legend">
        <span><span class="mark own" /> this dictionary, 95 % interval</span>
        {names.map((name) => (
          <span key={name}><span class={`mark ${name}`} /> {CONTROL_NAMES[name] ?? name}</span>
        ))}
        {main.length < scores.length && (
          <button type="button" class="button ghost small" aria-expanded={all} onClick={() => setParams({ scores: all ? null : "all" })}>
            {all ? "Show the main scores" : `Show all ${scores.length} scores`}
          </button>
        )}
      </div>
    </>
  );
}
