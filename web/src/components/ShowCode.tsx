/** The lines of Python that give the same numbers in a notebook, with a copy button. */

import { useRef, useState } from "preact/hooks";

async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function CodeBlock({ code }: { code: string }) {
  const [state, setState] = useState<"idle" | "copied" | "failed">("idle");
  const timer = useRef<number>(0);
  const onCopy = async () => {
    setState((await copy(code)) ? "copied" : "failed");
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => setState("idle"), 1600);
  };
  const label = { idle: "Copy", copied: "Copied", failed: "Select and copy by hand" }[state];
  return (
    <div class="code" data-testid="code">
      <pre tabIndex={0}>{code}</pre>
      <button type="button" class="button small" onClick={onCopy} aria-live="polite">
        {label}
      </button>
    </div>
  );
}
