/** A link inside of the page: a plain click changes the view without a reload; with a modifier the browser does its usual thing. */

import type { ComponentChildren, JSX } from "preact";
import { go } from "../lib/place";

interface Props {
  href: string;
  children: ComponentChildren;
  class?: string;
  title?: string;
  label?: string;
  current?: boolean;
  role?: JSX.AriaRole;
}

export function Link({ href, children, class: name, title, label, current, role }: Props) {
  return (
    <a
      href={href}
      class={name}
      title={title}
      aria-label={label}
      aria-current={current ? "page" : undefined}
      role={role}
      onClick={(event) => {
        if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
        event.preventDefault();
        go(href);
      }}
    >
      {children}
    </a>
  );
}
