"""How the report looks: one style sheet for light, dark, narrow and print."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f5f6f8; --ink: #1a1d21; --muted: #5b636d;
  --line: #d8dce2; --c1: #1f63b5; --c2: #c2500f; --c3: #0b7a63; --c4: #8246a8;
  --good: #0a7040; --bad: #b01e1e; --good-back: #e3f3ea; --bad-back: #fae6e4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1d2126; --ink: #e7eaee; --muted: #a2abb6;
    --line: #3a414a; --c1: #74b0f5; --c2: #f2935c; --c3: #52c7a8;
    --c4: #c795e8; --good: #5fd196; --bad: #ff8f87; --good-back: #16352a;
    --bad-back: #3f2022;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 5rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
h1, h2, h3 { line-height: 1.2; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0.1rem 0 0.6rem; letter-spacing: -0.015em; }
h2 {
  font-size: 1.3rem; margin: 2.6rem 0 0.3rem; padding-top: 1rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1.02rem; margin: 1.8rem 0 0.4rem; }
h4 { font-size: 0.92rem; margin: 0; }
p { margin: 0.3rem 0 0.9rem; max-width: 46rem; }
a { color: var(--c1); }
.kicker, .note, figcaption, .legend, nav, footer, caption {
  color: var(--muted); font-size: 0.88rem;
}
.kicker { margin: 0; }
.lede { font-size: 1.2rem; max-width: 46rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0;
  margin: 0; list-style: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.4rem; }
th, td { padding: 0.42rem 1.6rem 0.42rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { font-size: 0.85rem; font-weight: 500; color: var(--muted); }
tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; min-width: 7rem; }
.strong { font-weight: 650; }
td .note { font-weight: 400; font-size: 0.8rem; }
.wide { overflow-x: auto; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.figures { display: grid; gap: 0 1.6rem; margin: 0.9rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }
.figures.large { gap: 0 3rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 33rem)); }
figure { margin: 0 0 1.2rem; min-width: 0; display: grid;
  grid-row: span 3; grid-template-rows: subgrid; }
figure .note { margin: 0.3rem 0 0; }
figcaption b { color: var(--ink); font-weight: 600; font-size: 0.98rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; fill: var(--muted);
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; min-height: 1.5em; }
.legend i { display: inline-block; width: 1.1rem; height: 0;
  vertical-align: 0.25em; margin-right: 0.4rem;
  border-top: 3px solid var(--chip); }
.legend i.dashed { border-top: 2px dashed var(--chip); }
.legend i.points { width: 0.55rem; height: 0.55rem; border: 0;
  border-radius: 50%; background: var(--chip); vertical-align: 0; }
.sample { background: var(--card); border-radius: 10px; margin: 0 0 1.1rem;
  padding: 0.9rem 1.1rem 1.1rem; }
.sample > h3 { margin: 0 0 0.5rem; font-size: 0.9rem; font-weight: 500;
  color: var(--muted); }
.prompt { max-height: 13rem; overflow-y: auto; margin-bottom: 0.8rem;
  overflow-wrap: anywhere; }
.prompt p { margin: 0 0 0.3rem; max-width: none; white-space: pre-wrap; }
.prompt b { color: var(--muted); font-weight: 500; font-size: 0.85rem;
  margin-right: 0.5rem; }
.answers { display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.answer { background: var(--paper); border: 1px solid var(--line);
  border-top: 3px solid var(--edge, var(--line)); border-radius: 6px;
  padding: 0.55rem 0.8rem 0.7rem; min-width: 0; }
.answer.right { --edge: var(--good); }
.answer.wrong { --edge: var(--bad); }
.answer header { display: flex; flex-wrap: wrap; gap: 0 0.8rem;
  align-items: baseline; font-size: 0.85rem; color: var(--muted); }
.answer header h4 { color: var(--ink); }
pre, code { font: 0.84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas,
  "Liberation Mono", monospace; }
pre { margin: 0.4rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--bad-back); color: inherit; border-radius: 2px;
  box-shadow: 0 0 0 2px var(--bad-back); }
.block { background: var(--card); border-radius: 8px; padding: 0.8rem 1rem; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: var(--muted); }
.bar { display: flex; height: 0.8rem; width: 100%; min-width: 7rem;
  border-radius: 3px; overflow: hidden; }
.bar span { background: var(--chip); min-width: 1px; }
td.bars { width: 34%; padding-right: 1.2rem; }
footer { margin-top: 4rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
@media (min-width: 40rem) { tbody th { white-space: nowrap; } }
@media (max-width: 40rem) {
  body { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  .lede { font-size: 1.08rem; }
  th, td { padding-right: 0.7rem; font-size: 0.92rem; }
  th:last-child, td:last-child { padding-right: 0; }
  thead .number { min-width: 0; }
  .number .note { white-space: normal; }
}
@media print {
  body { max-width: none; padding: 0; }
  nav { display: none; }
  figure, .sample { break-inside: avoid; }
}
"""
