// Runs before the first paint: a chosen theme is set without a flash of the other one.
{
  let kept = null;
  try {
    kept = localStorage.getItem("patchifier.theme");
  } catch {
    // A browser may refuse storage; the system's theme is used.
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
}
