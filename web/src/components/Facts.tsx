/** A calm row of name-value pairs. */

import type { ComponentChildren } from "preact";

export interface Fact {
  name: string;
  value: ComponentChildren;
  note?: ComponentChildren;
}

export function Facts({ facts, testid }: { facts: Fact[]; testid?: string }) {
  return (
    <dl class="facts" data-testid={testid}>
      {facts.map((fact) => (
        <div key={fact.name}>
          <dt>{fact.name}</dt>
          <dd>{fact.value}</dd>
          {fact.note && <dd class="note">{fact.note}</dd>}
        </div>
      ))}
    </dl>
  );
}
