/** A row of choices of which one is on. */

export interface Choice {
  value: string;
  label: string;
  title?: string;
}

interface Props {
  label: string;
  choices: Choice[];
  value: string;
  onChange: (value: string) => void;
}

export function Segmented({ label, choices, value, onChange }: Props) {
  return (
    <div class="segmented" role="group" aria-label={label}>
      {choices.map((choice) => (
        <button type="button" key={choice.value} title={choice.title} aria-pressed={choice.value === value} onClick={() => onChange(choice.value)}>
          {choice.label}
        </button>
      ))}
    </div>
  );
}
