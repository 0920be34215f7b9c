// The light and dark theme: the system's choice until the button is pressed.
(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try {
      return localStorage.getItem("llm_jax-theme");
    } catch {
      return null; // Storage may be forbidden for pages that are opened from a disk.
    }
  };
  const tell = () => root.dispatchEvent(new Event("themechange"));
  const stored = remembered();
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("llm_jax-theme", root.dataset.theme);
    } catch {
      // The choice then lasts as long as the page.
    }
    tell();
  });
  system.addEventListener("change", tell);
  root.classList.add("scripted");

  // Marks the section that is being read in the navigation.
  const links = new Map();
  for (const link of document.querySelectorAll("nav a")) links.set(link.hash.slice(1), link);
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  for (const section of document.querySelectorAll("main > section")) seen.observe(section);
})();
