/** One example: the strongest value, where it stands, and its tokens. */

import { useMemo } from "preact/hooks";
import { count, fixed } from "../lib/format";
import type { ExampleBody } from "../lib/types";
import { TokenStrip } from "./TokenStrip";

interface Props {
  id: string;
  example: ExampleBody;
  max: number;
  breaks: boolean;
}

export function Example({ id, example, max, breaks }: Props) {
  const tokens = useMemo(() => example.tokens, [example]);
  const focus = example.tokens[example.focus];
  return (
    <article class="example" data-testid="example">
      <span class="example-value" title="Activation at the underlined token">
        {focus ? fixed(focus.value, 2) : "—"}
      </span>
      <div class="example-body">
        <TokenStrip id={id} tokens={tokens} max={max} focus={example.focus} breaks={breaks} />
        <p class="example-source" title={`${example.doc}, from token ${count(example.start)}`}>
          {example.doc} <span>· token {count(example.start + example.focus)}</span>
        </p>
      </div>
    </article>
  );
}
