// The page of one run, drawn from its JSON when the address ends in #run-ID. Texts are set as text, never as HTML.

const whole = document.getElementById("whole");
const reportTitle = document.title;
const shared = JSON.parse(document.getElementById("shared").textContent);
const generated = document.querySelector("header .banner strong")?.textContent ?? "";
const reportSheets = sheets.length;
let runPage = null;
let place = 0;

function makeSvg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Steps of 1, 2 or 5 times a power of ten, about `wanted` of them.
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + 1e-9 * step; tick++) found.push(Number((tick * step).toPrecision(12)));
  return found;
}

// A curve each for training and validation over the epochs; `best` is the epoch whose weights were kept.
function chart(title, epochs, curves, scale, best) {
  const [width, height, left, right, top, bottom] = [520, 270, 46, 86, 12, 34];
  const values = Object.values(curves).flat().filter((value) => value !== null).map((value) => value * scale);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-6 * scale) [low, high] = [low - 0.05 * scale, high + 0.05 * scale];
  const [first, last] = [epochs[0], epochs.at(-1)];
  const x = (epoch) => left + (width - left - right) * (last > first ? (epoch - first) / (last - first) : 0.5);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart" });
  for (const tick of ticks(low, high, 4)) {
    svg.append(makeSvg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(makeSvg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of ticks(first, last, 5).filter(Number.isInteger))
    svg.append(makeSvg("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, String(tick)));
  svg.append(makeSvg("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "epoch"));
  if (best !== null) svg.append(makeSvg("line", { x1: x(best), x2: x(best), y1: top, y2: height - bottom, class: "best" }));
  const said = drawCurves(svg, epochs, curves, x, (value) => y(value * scale));
  svg.setAttribute("aria-label", `${title}: ${said.map(([name, from, to]) => `${name} from ${(from * scale).toPrecision(3)} to ${(to * scale).toPrecision(3)}`).join(", ")}, epochs ${first} to ${last}`);
  return make("figure", { class: "curve" }, make("h3", {}, title), svg);
}

// Draw each curve, gaps where nothing is known, and name it at its end; returns names with first and last values.
function drawCurves(svg, epochs, curves, x, y) {
  const ends = [];
  for (const [name, values] of Object.entries(curves)) {
    const points = values.map((value, index) => [epochs[index], value]).filter(([, value]) => value !== null);
    if (!points.length) continue;
    svg.append(makeSvg("polyline", { class: `line ${name}`, points: points.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
    if (points.length === 1) svg.append(makeSvg("circle", { class: `dot ${name}`, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }));
    ends.push([name, points[0][1], points.at(-1)[1], x(points.at(-1)[0])]);
  }
  const heights = ends.map(([, , last]) => y(last));
  if (heights.length === 2 && Math.abs(heights[0] - heights[1]) < 15) {
    const [middle, up] = [(heights[0] + heights[1]) / 2, heights[0] <= heights[1] ? -7.5 : 7.5];
    [heights[0], heights[1]] = [middle + up, middle - up];
  }
  ends.forEach(([name, , , end], index) => svg.append(makeSvg("text", { x: end + 7, y: heights[index] + 4, class: `name ${name}` }, name)));
  return ends;
}

function training(curves) {
  if (!curves.epoch?.length) return [];
  const real = Object.entries(curves).map(([name, values]) => [name, name === "epoch" ? values : values.map((value) => (value === null ? null : shared.unit * value))]);
  curves = Object.fromEntries(real);
  const accuracies = curves.validation_accuracy;
  const known = accuracies.filter((value) => value !== null);
  const best = known.length ? curves.epoch[accuracies.indexOf(Math.max(...known))] : null;
  const pair = (name) => ({ training: curves[`train_${name}`], validation: curves[`validation_${name}`] });
  const words = best === null ? "" : `The vertical line marks the highest validation accuracy, ${(100 * Math.max(...known)).toFixed(1)} % at epoch ${best}.`;
  return part("Training", words, make("div", { class: "curves" },
    chart("Loss", curves.epoch, pair("loss"), 1, best), chart("Accuracy (%)", curves.epoch, pair("accuracy"), 100, best)));
}

// A table of texts; the first `heads` columns name their row.
function plainTable(title, heads, rows, numbers = false) {
  const cells = (row) => row.map((text, index) => make(index ? "td" : "th", index ? (numbers ? { class: "number" } : {}) : { scope: "row" }, text));
  const head = make("tr", {}, ...heads.map((text, index) => make("th", { scope: "col", ...(numbers && index ? { class: "number" } : {}) }, text)));
  const table = make("table", { "aria-label": title }, make("thead", {}, head), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
  return make("figure", { class: "table plain" }, make("div", { class: "box", tabindex: 0, role: "region", "aria-label": title }, table));
}

// A column of texts or of numbers, as page.js takes them.
const texts = (words) => ({ kind: "text", words, codes: words.map((_, row) => row) });
const numbers = (values, digits) => ({ kind: "number", digits, signed: false, numbers: [values] });

// A table that sorts and filters, as those of the report.
function sheet(title, columns) {
  const heads = Object.entries(columns).map(([head, column]) =>
    make("th", { scope: "col", "data-head": head, ...(column.codes ? {} : { class: "number" }) }, make("button", { type: "button" }, head)));
  const table = make("table", { "aria-label": title }, make("thead", {}, make("tr", {}, ...heads)), make("tbody"));
  const figure = make("figure", { class: "table" },
    make("p", { class: "tools" }, make("label", {}, "Filter ", make("input", { type: "search" })), " ", make("output")),
    make("div", { class: "box", tabindex: 0, role: "region", "aria-label": title }, table),
    make("p", { class: "more" }, make("button", { type: "button" })));
  const data = Object.values(columns);
  sheets.push(new Sheet(figure, { rows: (data[0].codes ?? data[0].numbers[0]).length, columns: data }));
  return figure;
}

function part(title, words, ...children) {
  return [make("h2", {}, title), ...(words ? [make("p", {}, words)] : []), ...children];
}

function measurements(measured) {
  if (!measured?.length) return [];
  const here = shared.pairs.map((_, row) => row).filter((row) => measured[0][row] !== null);
  const of = (place) => here.map((row) => shared.pairs[row][place]);
  const metric = (place, scale, digits) => numbers(here.map((row) => (measured[place][row] === null ? null : scale * shared.unit * measured[place][row])), digits);
  return part("Measurements", "On the test galaxies.", sheet("Measurements", {
    condition: texts(of(0)), severity: numbers(of(1), null), "that is": texts(of(2)), "accuracy (%)": metric(0, 100, 1),
    "balanced accuracy (%)": metric(1, 100, 1), NLL: metric(2, 1, 3), "ECE (%)": metric(3, 100, 1) }));
}

function confusion(counts) {
  if (!counts?.length) return [];
  const names = shared.classes.map((name, number) => `${number} ${name}`);
  const rows = names.map((name, truth) => [name, ...counts.slice(10 * truth, 10 * truth + 10).map(String)]);
  const figure = plainTable("Confusion matrix", ["truth", ...names.map((_, number) => String(number))], rows, true);
  figure.classList.add("confusion");
  figure.querySelectorAll("tbody tr").forEach((row, truth) => {
    const sum = counts.slice(10 * truth, 10 * truth + 10).reduce((a, b) => a + b, 0) || 1;
    row.querySelectorAll("td").forEach((cell, predicted) => cell.style.setProperty("--share", `${(45 * counts[10 * truth + predicted]) / sum}%`));
  });
  return part("Confusion matrix", "Clean test galaxies: rows are the truth, columns the predicted class by its number; darker is a larger share of the row.", figure);
}

function mistakes(list) {
  if (!list?.length) return [];
  const items = list.map(([row, truth, predicted, wrong]) => make("li", {},
    shared.pictures[row] ? make("img", { src: shared.pictures[row], alt: "" }) : make("span", { class: "absent" }, "no picture kept"),
    make("strong", {}, shared.classes[truth]), ` taken for ${shared.classes[predicted]}; wrong under ${(100 * wrong).toFixed(0)} % of all conditions (row ${row})`));
  return part("Hardest galaxies", "Clean test galaxies that this run gets wrong, those first that it gets wrong under most conditions.", make("ul", { class: "thumbnails" }, ...items));
}

function history(events) {
  if (!events?.length) return [];
  const items = events.map(([when, words, trace]) => make("li", {}, make("time", {}, when), make("span", {}, words), ...(trace ? [make("pre", { tabindex: 0 }, trace)] : [])));
  return part("History", "Times are in UTC.", make("ol", { class: "history" }, ...items));
}

function entries(title, common, own) {
  const rows = Object.entries({ ...common, ...own }).sort(([a], [b]) => collator.compare(a, b));
  return rows.length ? part(title, "", plainTable(title, ["name", "value"], rows)) : [];
}

function drawRun(id, run) {
  const position = shared.runs.indexOf(id);
  const link = (number, text) => (shared.runs[number] ? [make("a", { href: `#run-${encodeURIComponent(shared.runs[number])}` }, text)] : []);
  const clean = shared.pairs.findIndex(([name]) => name === "clean");
  const right = run.measured?.length && run.measured[0][clean] != null ? ` ${(100 * shared.unit * run.measured[0][clean]).toFixed(1)} % of the clean test galaxies right.` : "";
  const notes = [generated && `${generated}.`, run.reason && `Not complete: ${run.reason}.`].filter(Boolean);
  return make("main", { id: "run", class: "page" },
    make("nav", { "aria-label": "Runs", class: "steps" }, make("a", { href: "#runs" }, "← Report"), ...link(position - 1, "Previous run"), ...link(position + 1, "Next run")),
    make("h1", { tabindex: -1 }, id), make("p", { class: "lead" }, `${run.label}, seed ${run.seed}.${right} Run ${position + 1} of ${shared.runs.length}.`),
    ...notes.map((note) => make("p", { class: "banner" }, note)),
    ...training(run.curves), ...confusion(run.confusion), ...mistakes(run.mistakes), ...measurements(run.measured),
    ...history(run.events), ...entries("Settings", shared.settings, run.settings), ...entries("Provenance", shared.provenance, run.provenance));
}

// Show the run that the address names, or the report.
function show() {
  const id = location.hash.startsWith("#run-") ? decodeURIComponent(location.hash.slice(5)) : "";
  const data = shared.runs.includes(id) ? document.getElementById(`of-${id}`) : null;
  sheets.length = reportSheets;
  if (runPage) runPage.remove();
  else place = scrollY;
  runPage = data && drawRun(id, JSON.parse(data.textContent));
  whole.hidden = Boolean(runPage);
  document.title = runPage ? `${id}: ${reportTitle}` : reportTitle;
  if (runPage) {
    document.querySelector(".skip").after(runPage);
    scrollTo(0, 0);
    runPage.querySelector("h1").focus({ preventScroll: true });
  } else if (location.hash.length > 1) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  else scrollTo(0, place);
}

addEventListener("hashchange", show);
if (location.hash.startsWith("#run-")) show();
