/** Start: the app, or the saved page where this file carries its own data. */

import { render } from "preact";
import { App } from "./app";
import { applyTheme, theme } from "./lib/theme";
import type { SavedPage } from "./lib/types";
import { Saved } from "./saved";
import "./styles/index.css";

const root = document.getElementById("app") ?? document.body.appendChild(document.createElement("div"));
const payload = document.getElementById("hooke-payload")?.textContent;

applyTheme(theme.get());
render(payload ? <Saved payload={JSON.parse(payload) as SavedPage} /> : <App />, root);
