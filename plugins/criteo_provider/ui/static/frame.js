/* Runs first, in <head>: colours and font of the Airflow page around us, or sensible ones without it. */
(function () {
  "use strict";
  const root = document.documentElement;
  /* Airflow shows us in a frame of its own origin; alone, or in a frame that is not readable, there is no host. */
  let host = null;
  try { if (window.parent !== window) host = window.parent.document.documentElement; } catch { host = null; }

  /* Ours <- Airflow's. Its names are no promise, so pages.css has a colour for each of ours; those of states are
     ours alone, because Airflow's red and orange are too pale for text on its light ground. */
  const COLOURS = { "--bg": "bg", "--fg": "fg", "--muted": "fg-muted", "--card": "bg-subtle", "--line": "border" };

  function theme() {
    if (host) return host.classList.contains("dark") ? "dark" : "light";
    let chosen = null;
    try { chosen = localStorage.getItem("theme"); } catch { /* storage may be forbidden */ }
    if (chosen === "dark" || chosen === "light") return chosen;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  function apply() {
    root.classList.toggle("dark", theme() === "dark");
    root.style.colorScheme = theme();
    if (!host) return;
    const style = parent.getComputedStyle(host);
    for (const [ours, theirs] of Object.entries(COLOURS)) {
      const value = style.getPropertyValue("--chakra-colors-" + theirs).trim();
      if (value) root.style.setProperty(ours, value);
    }
    root.style.setProperty("--font", parent.getComputedStyle(parent.document.body).fontFamily);
  }

  apply();
  if (host) new MutationObserver(apply).observe(host, { attributes: true, attributeFilter: ["class"] });
  addEventListener("storage", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);

  /* <a data-top> leaves the frame. The frame may not move the page around it, an anchor in that page may. */
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[data-top]");
    if (!link || !host) return;
    event.preventDefault();
    const twin = parent.document.createElement("a");
    twin.href = link.href;
    twin.hidden = true;
    parent.document.body.appendChild(twin);
    twin.click();
    twin.remove();
  });
})();
