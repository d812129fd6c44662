import { defineConfig } from "vite";

// One script and one style sheet with fixed names: the server serves them under /static/, and a saved feature page
// holds the same two files inlined, so nothing may be split into chunks or fetched later.
export default defineConfig({
  base: "/static/",
  build: {
    outDir: "../src/hooke/web/static",
    emptyOutDir: true,
    target: "es2022",
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 100_000_000,
    chunkSizeWarningLimit: 600,
    rolldownOptions: {
      output: {
        entryFileNames: "app.js",
        assetFileNames: "app.[ext]",
        codeSplitting: false,
      },
    },
  },
});
