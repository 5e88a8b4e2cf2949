// Light, dark, or as the system has it: before the page is painted, so it is no module. The choice is remembered.
// The styles have one dark part each, for a system that is dark; that part is switched on or off.

(() => {
  const SYSTEM = "(prefers-color-scheme: dark)";
  const KEY = "theme";
  const darkParts = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).filter((rule) => rule.media?.mediaText === SYSTEM);

  function choose(theme) {
    for (const { media } of darkParts) media.mediaText = { light: "not all", dark: "all" }[theme] ?? SYSTEM;
    document.documentElement.style.colorScheme = theme === "system" ? "" : theme;
  }

  function remembered() {
    try {
      return localStorage.getItem(KEY) ?? "system";
    } catch {
      return "system"; // no storage, as in some private modes
    }
  }

  choose(remembered());
  document.addEventListener("DOMContentLoaded", () => {
    const control = document.querySelector("#theme");
    if (!control) return;
    control.value = remembered();
    control.addEventListener("change", () => {
      choose(control.value);
      try {
        localStorage.setItem(KEY, control.value);
      } catch {
        // it holds for this page
      }
    });
  });
})();
