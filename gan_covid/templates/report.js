// Filters, search and the colour scheme; without it the page is whole, only nothing can be hidden.
(() => {
  const all = (what, root = document) => [...root.querySelectorAll(what)];
  const remember = (value) => { try { localStorage.setItem('theme', value) } catch { /* a local file may not */ } };
  const root = document.documentElement;

  const theme = document.getElementById('theme');
  theme.hidden = false;
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  const label = () => { theme.textContent = dark() ? 'Light' : 'Dark' };
  theme.addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; remember(root.dataset.theme); label() });
  label();

  // a link to something within closed details opens them
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let d = target.closest('details'); d; d = d.parentElement.closest('details')) d.open = true;
    target.scrollIntoView();
  };
  addEventListener('hashchange', open);
  open();
  addEventListener('beforeprint', () => all('main details').forEach((d) => { d.dataset.was = d.open; d.open = true }));
  addEventListener('afterprint', () => all('main details').forEach((d) => { d.open = d.dataset.was === 'true' }));

  const bar = document.querySelector('.bar');
  if (!bar) return;
  bar.hidden = false;
  const search = bar.querySelector('input'), count = bar.querySelector('output');
  const entries = all('[data-verdicts]').map((node) => ({
    node, text: node.textContent.toLowerCase(),
    verdicts: node.dataset.verdicts.split('|'), data: node.dataset.data.split(' '),
  }));
  const pressed = (name) => all(`button[data-${name}][aria-pressed="true"]`, bar).map((b) => b.dataset[name]);
  const opened = new Set();

  const apply = () => {
    const verdicts = pressed('verdict'), data = pressed('kind');
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const active = Boolean(verdicts.length || data.length || words.length);
    let shown = 0;
    for (const e of entries) {
      const fits = (!verdicts.length || verdicts.some((v) => e.verdicts.includes(v)))
        && (!data.length || data.some((d) => e.data.includes(d)))
        && words.every((w) => e.text.includes(w));
      e.node.hidden = !fits;
      shown += fits;
    }
    for (const part of all('[data-part]')) {
      const left = part.querySelector('[data-verdicts]:not([hidden])');
      part.hidden = active && !left;
      if (part.tagName === 'DETAILS' && active && left && !part.open) { part.open = true; opened.add(part) }
    }
    if (!active) { opened.forEach((d) => { d.open = false }); opened.clear() }
    all('.side a[data-of]').forEach((a) => { a.parentElement.hidden = document.getElementById(a.dataset.of)?.hidden ?? false });
    count.textContent = active ? `${shown} of ${entries.length} entries` : `${entries.length} entries`;
    bar.querySelector('[type="reset"]').hidden = !active;
  };
  bar.addEventListener('click', (event) => {
    const button = event.target.closest('button[aria-pressed]');
    if (!button) return;
    button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
    apply();
  });
  bar.addEventListener('submit', (event) => event.preventDefault());
  bar.addEventListener('reset', () => {
    all('button[aria-pressed]', bar).forEach((b) => b.setAttribute('aria-pressed', 'false'));
    setTimeout(() => { apply(); search.focus() });
  });
  search.addEventListener('input', apply);
  apply();
})();
