/** A slider with its value, a mark at zero, and a way back to zero. */

import { fixed } from "../lib/format";

interface Props {
  label: string;
  value: number;
  low: number;
  high: number;
  step: number;
  unit: string;
  onChange: (value: number) => void;
}

export function Slider({ label, value, low, high, step, unit, onChange }: Props) {
  const at = (number: number) => `${(100 * (number - low)) / (high - low)}%`;
  const zero = Math.max(low, Math.min(high, 0));
  const fill = { left: at(Math.min(value, zero)), width: `${(100 * Math.abs(value - zero)) / (high - low)}%` };
  return (
    <div class="slider">
      <div class="slider-head">
        <span>{label}</span>
        <output>
          {fixed(value, 2)}
          {unit}
        </output>
      </div>
      <div class="slider-track">
        <span class="rail" />
        <span class={value < 0 ? "fill lowered" : "fill"} style={fill} />
        <span class="zero" style={{ left: at(zero) }} />
        <input type="range" aria-label={label} min={low} max={high} step={step} value={value} onInput={(event) => onChange(Number(event.currentTarget.value))} onDblClick={() => onChange(0)} />
      </div>
      <div class="slider-ends" aria-hidden="true">
        <span>{fixed(low, 0)}</span>
        <span>0</span>
        <span>+{fixed(high, 0)}</span>
      </div>
    </div>
  );
}
