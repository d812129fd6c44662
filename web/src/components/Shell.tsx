/** The bar on top of every view: where to go, which dictionary this is, the jump to a latent, light or dark. */

import { useState } from "preact/hooks";
import { go, latentHref, usePlace } from "../lib/place";
import { useStore } from "../lib/store";
import { nextTheme, setTheme, theme, type Theme } from "../lib/theme";
import type { Overview } from "../lib/types";
import { Link } from "./Link";

const PLACES = [
  { href: "/", label: "Overview" },
  { href: "/try", label: "Try text" },
  { href: "/steer", label: "Steer" },
  { href: "/search", label: "Search" },
];

const THEMES: Record<Theme, { sign: string; label: string }> = {
  auto: { sign: "◐", label: "Colours: as the system" },
  light: { sign: "○", label: "Colours: light" },
  dark: { sign: "●", label: "Colours: dark" },
};

export function Mark() {
  return (
    <svg class="mark-logo" viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
      <circle cx="10" cy="10" r="8.25" fill="none" stroke="currentColor" stroke-width="1.6" />
      <circle cx="10" cy="10" r="4.6" fill="none" stroke="currentColor" stroke-width="1.2" opacity="0.45" />
      <circle cx="10" cy="10" r="2" fill="var(--accent)" />
    </svg>
  );
}

export function ThemeButton() {
  const value = useStore(theme);
  return (
    <button type="button" class="button ghost icon" title={THEMES[value].label} aria-label={THEMES[value].label} onClick={() => setTheme(nextTheme(value))}>
      {THEMES[value].sign}
    </button>
  );
}

function Jump({ nLatents }: { nLatents: number }) {
  const [text, setText] = useState("");
  return (
    <form
      class="jump"
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        const index = Number(text.replace("#", ""));
        if (text.trim() === "") return;
        if (!Number.isInteger(index) || index < 0 || index >= nLatents) {
          const input = event.currentTarget.querySelector("input");
          input?.setCustomValidity(`There is no latent ${text.trim()}: they go from 0 to ${nLatents - 1}.`);
          input?.reportValidity();
          return;
        }
        setText("");
        (document.activeElement as HTMLElement | null)?.blur();
        go(latentHref(index));
      }}
    >
      <input class="field" inputMode="numeric" aria-label="Go to latent" placeholder="Go to #" value={text} onInput={(event) => {
          event.currentTarget.setCustomValidity("");
          setText(event.currentTarget.value);
        }} />
    </form>
  );
}

export function Shell({ overview }: { overview: Overview | null }) {
  const { path } = usePlace();
  return (
    <header class="shell">
      <div class="shell-inner">
        <Link href="/" class="brand" label="hooke, overview">
          <Mark />
          hooke
        </Link>
        <nav aria-label="Views">
          {PLACES.map((place) => (
            <Link key={place.href} href={place.href} current={path === place.href}>
              {place.label}
            </Link>
          ))}
        </nav>
        <div class="shell-end">
          {overview && <span class="context" title={`${overview.model.name}, dictionary ${overview.dictionary.name}`}>{overview.model.name}</span>}
          {overview && <Jump nLatents={overview.dictionary.n_latents} />}
          <ThemeButton />
        </div>
      </div>
    </header>
  );
}
