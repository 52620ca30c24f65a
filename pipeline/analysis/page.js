// The page's own script: draws the figures (vega-embed), sorts and filters tables. Nothing is fetched.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 40rem)");

// Axes and words take the page's colours; the marks' colours are the figure's own and are readable on both.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const soft = style.getPropertyValue("--soft").trim();
  const rule = style.getPropertyValue("--rule").trim();
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: rule },
    axis: { labelColor: soft, titleColor: ink, gridColor: rule, domainColor: soft, tickColor: soft },
    legend: { labelColor: ink, titleColor: ink },
    header: { labelColor: ink, titleColor: ink },
    title: { color: ink, subtitleColor: soft },
  };
}

// A specification as it lies in the page: JSON, compressed by gzip, in base64.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// On a narrow screen panels stand below each other, and so do the lines of a legend.
function stacked(spec) {
  const text = JSON.stringify(spec, (key, part) => (key === "legend" && part ? { ...part, columns: 1 } : part));
  const one = JSON.parse(text);
  return one.vconcat ? { ...one, vconcat: one.vconcat.flatMap((row) => row.hconcat ?? [row]) } : one;
}

// The first figure at once; each of the others when the browser has time for it, so that the page answers meanwhile.
async function draw() {
  for (const holder of document.querySelectorAll("[data-spec]")) {
    if (holder.matches("main *")) await new Promise((resume) => setTimeout(resume));
    const whole = await unpacked(holder.dataset.spec);
    const spec = narrow.matches ? stacked(whole) : whole;
    const config = { ...spec.config };
    for (const [part, colours] of Object.entries(theme()))
      config[part] = typeof colours === "object" ? { ...config[part], ...colours } : colours;
    const chart = holder.querySelector(".chart");
    await vegaEmbed(chart, { ...spec, config }, { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } });
    holder.classList.add("alive");
  }
  document.documentElement.dataset.drawn = "yes";
}

// A cell sorts as the number it begins with, and otherwise as text; empty cells come last either way.
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = /^[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?/i.exec(text);
  return text === "" ? null : number ? parseFloat(number[0].replaceAll(",", "")) : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, column, button) {
  const heading = button.closest("th");
  const down = heading.ariaSort === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.ariaSort = down ? "descending" : "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : down ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.title = "sort";
    button.addEventListener("click", () => sort(table, column, button));
    heading.append(button);
  });
  if (table.tBodies[0].rows.length < 6) continue;
  const filter = document.createElement("input");
  filter.type = "search";
  filter.placeholder = "filter rows";
  filter.ariaLabel = `filter rows of ${table.dataset.name}`;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows)
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  table.parentElement.before(filter);
}

for (const change of [dark, narrow]) change.addEventListener("change", draw);
draw();
