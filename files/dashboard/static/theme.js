// Before anything is drawn, so that the page does not flash in the other scheme.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem('theme'); } catch { /* a browser that keeps nothing */ }
  if (chosen === 'dark' || chosen === 'light') document.documentElement.dataset.theme = chosen;
})();
