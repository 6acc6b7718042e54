// The page of one run, drawn from its JSON when the address ends in #run-ID. All content is set as text, never as HTML.

const report = document.getElementById("report");
const reportTitle = document.title;
const shared = JSON.parse(document.getElementById("shared").textContent);
const generated = document.querySelector("header .banner strong")?.textContent ?? "";
const numReportTables = dataTables.length;
let runPage = null;
let scrollPosition = 0;

function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Return about `count` multiples of 1, 2 or 5 times a power of ten.
function computeTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + 1e-9 * step; tick++) ticks.push(Number((tick * step).toPrecision(12)));
  return ticks;
}

// Draw one curve each for training and validation over the epochs; `best` is the epoch whose weights were kept.
function drawChart(title, epochs, curves, scale, best) {
  const [width, height, left, right, top, bottom] = [520, 270, 46, 86, 12, 34];
  const values = Object.values(curves).flat().filter((value) => value !== null).map((value) => value * scale);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-6 * scale) [low, high] = [low - 0.05 * scale, high + 0.05 * scale];
  const [first, last] = [epochs[0], epochs.at(-1)];
  const x = (epoch) => left + (width - left - right) * (last > first ? (epoch - first) / (last - first) : 0.5);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart" });
  for (const tick of computeTicks(low, high, 4)) {
    svg.append(makeSvg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(makeSvg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of computeTicks(first, last, 5).filter(Number.isInteger))
    svg.append(makeSvg("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, String(tick)));
  svg.append(makeSvg("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "epoch"));
  if (best !== null) svg.append(makeSvg("line", { x1: x(best), x2: x(best), y1: top, y2: height - bottom, class: "best" }));
  const ends = drawCurves(svg, epochs, curves, x, (value) => y(value * scale));
  svg.setAttribute("aria-label", `${title}: ${ends.map(([name, from, to]) => `${name} from ${(from * scale).toPrecision(3)} to ${(to * scale).toPrecision(3)}`).join(", ")}, epochs ${first} to ${last}`);
  return makeElement("figure", { class: "curve" }, makeElement("h3", {}, title), svg);
}

// Draw each curve, with gaps at missing values, and name it at its end; return names with first and last values.
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

function makeTrainingSection(curves) {
  if (!curves.epoch?.length) return [];
  const scaled = Object.entries(curves).map(([name, values]) => [name, name === "epoch" ? values : values.map((value) => (value === null ? null : shared.unit * value))]);
  curves = Object.fromEntries(scaled);
  const accuracies = curves.validation_accuracy;
  const known = accuracies.filter((value) => value !== null);
  const best = known.length ? curves.epoch[accuracies.indexOf(Math.max(...known))] : null;
  const pair = (name) => ({ training: curves[`train_${name}`], validation: curves[`validation_${name}`] });
  const text = best === null ? "" : `The vertical line marks the highest validation accuracy, ${(100 * Math.max(...known)).toFixed(1)} % at epoch ${best}.`;
  return makeSection("Training", text, makeElement("div", { class: "curves" },
    drawChart("Loss", curves.epoch, pair("loss"), 1, best), drawChart("Accuracy (%)", curves.epoch, pair("accuracy"), 100, best)));
}

// Make a table of texts; the first column names its row.
function makePlainTable(title, headings, rows, isNumeric = false) {
  const cells = (row) => row.map((text, index) => makeElement(index ? "td" : "th", index ? (isNumeric ? { class: "number" } : {}) : { scope: "row" }, text));
  const head = makeElement("tr", {}, ...headings.map((text, index) => makeElement("th", { scope: "col", ...(isNumeric && index ? { class: "number" } : {}) }, text)));
  const table = makeElement("table", { "aria-label": title }, makeElement("thead", {}, head), makeElement("tbody", {}, ...rows.map((row) => makeElement("tr", {}, ...cells(row)))));
  return makeElement("figure", { class: "table plain" }, makeElement("div", { class: "box", tabindex: 0, role: "region", "aria-label": title }, table));
}

// Make a column of texts or of numbers for DataTable.
const textColumn = (words) => ({ kind: "text", words, codes: words.map((_, row) => row) });
const numberColumn = (values, digits) => ({ kind: "number", digits, signed: false, numbers: [values] });

// Make a table that sorts and filters, like those of the report.
function makeDataTable(title, columns) {
  const headings = Object.entries(columns).map(([heading, column]) =>
    makeElement("th", { scope: "col", "data-heading": heading, ...(column.codes ? {} : { class: "number" }) }, makeElement("button", { type: "button" }, heading)));
  const table = makeElement("table", { "aria-label": title }, makeElement("thead", {}, makeElement("tr", {}, ...headings)), makeElement("tbody"));
  const figure = makeElement("figure", { class: "table" },
    makeElement("p", { class: "tools" }, makeElement("label", {}, "Filter ", makeElement("input", { type: "search" })), " ", makeElement("output")),
    makeElement("div", { class: "box", tabindex: 0, role: "region", "aria-label": title }, table),
    makeElement("p", { class: "more" }, makeElement("button", { type: "button" })));
  const data = Object.values(columns);
  dataTables.push(new DataTable(figure, { rows: (data[0].codes ?? data[0].numbers[0]).length, columns: data }));
  return figure;
}

function makeSection(title, text, ...children) {
  return [makeElement("h2", {}, title), ...(text ? [makeElement("p", {}, text)] : []), ...children];
}

function makeMetricsSection(metrics) {
  if (!metrics?.length) return [];
  const rows = shared.pairs.map((_, row) => row).filter((row) => metrics[0][row] !== null);
  const pairColumn = (column) => rows.map((row) => shared.pairs[row][column]);
  const metricColumn = (metric, scale, digits) =>
    numberColumn(rows.map((row) => (metrics[metric][row] === null ? null : scale * shared.unit * metrics[metric][row])), digits);
  return makeSection("Measurements", "On the test galaxies.", makeDataTable("Measurements", {
    condition: textColumn(pairColumn(0)), severity: numberColumn(pairColumn(1), null), "physical severity": textColumn(pairColumn(2)),
    "accuracy (%)": metricColumn(0, 100, 1), "balanced accuracy (%)": metricColumn(1, 100, 1),
    "macro F1 (%)": metricColumn(2, 100, 1), NLL: metricColumn(3, 1, 3), "ECE (%)": metricColumn(4, 100, 1) }));
}

function makeConfusionSection(counts) {
  if (!counts?.length) return [];
  if (Array.isArray(counts[0])) return makeConfusedPairsSection(counts);
  const names = shared.classes.map((name, number) => `${number} ${name}`), count = names.length;
  const rows = names.map((name, truth) => [name, ...counts.slice(count * truth, count * (truth + 1)).map(String)]);
  const figure = makePlainTable("Confusion matrix", ["truth", ...names.map((_, number) => String(number))], rows, true);
  figure.classList.add("confusion");
  figure.querySelectorAll("tbody tr").forEach((row, truth) => {
    const sum = counts.slice(count * truth, count * (truth + 1)).reduce((a, b) => a + b, 0) || 1;
    row.querySelectorAll("td").forEach((cell, predicted) => cell.style.setProperty("--share", `${(45 * counts[count * truth + predicted]) / sum}%`));
  });
  return makeSection("Confusion matrix", "Clean test galaxies: rows are the truth, columns the predicted class by its number; darker is a larger fraction of the row.", figure);
}

// Of more classes than a matrix shows.
function makeConfusedPairsSection(pairs) {
  const nameColumn = (index) => textColumn(pairs.map((pair) => shared.classes[pair[index]]));
  return makeSection("Most confused classes", `Clean test galaxies: the ${pairs.length} most frequent errors of ${shared.classes.length} classes.`, makeDataTable("Most confused classes", {
    truth: nameColumn(0), predicted: nameColumn(1), galaxies: numberColumn(pairs.map((pair) => pair[2]), 0) }));
}

function makeMisclassifiedSection(galaxies) {
  if (!galaxies?.length) return [];
  const items = galaxies.map(([row, truth, predicted, errorFraction]) => makeElement("li", {},
    shared.images[row] ? makeElement("img", { src: shared.images[row], alt: "" }) : makeElement("span", { class: "absent" }, "no image"),
    makeElement("strong", {}, shared.classes[truth]), ` predicted as ${shared.classes[predicted]}; wrong under ${(100 * errorFraction).toFixed(0)} % of all conditions (${shared.names[row] || `row ${row}`})`));
  return makeSection("Hardest galaxies", "Clean test galaxies that this run misclassifies, those wrong under most conditions first.", makeElement("ul", { class: "thumbnails" }, ...items));
}

function makeHistorySection(events) {
  if (!events?.length) return [];
  const items = events.map(([time, text, traceback]) => makeElement("li", {}, makeElement("time", {}, time), makeElement("span", {}, text), ...(traceback ? [makeElement("pre", { tabindex: 0 }, traceback)] : [])));
  return makeSection("History", "Times are in UTC.", makeElement("ol", { class: "history" }, ...items));
}

function makeEntriesSection(title, shared, own) {
  const rows = Object.entries({ ...shared, ...own }).sort(([a], [b]) => collator.compare(a, b));
  return rows.length ? makeSection(title, "", makePlainTable(title, ["name", "value"], rows)) : [];
}

function drawRun(id, run) {
  const position = shared.runs.indexOf(id);
  const link = (number, text) => (shared.runs[number] ? [makeElement("a", { href: `#run-${encodeURIComponent(shared.runs[number])}` }, text)] : []);
  const clean = shared.pairs.findIndex(([name]) => name === "clean");
  const accuracy = run.metrics?.length && run.metrics[0][clean] != null ? ` ${(100 * shared.unit * run.metrics[0][clean]).toFixed(1)} % of the clean test galaxies correct.` : "";
  const notes = [generated, run.reason && `Not complete: ${run.reason}.`].filter(Boolean);
  return makeElement("main", { id: "run", class: "page" },
    makeElement("nav", { "aria-label": "Runs", class: "steps" }, makeElement("a", { href: "#runs" }, "← Report"), ...link(position - 1, "Previous run"), ...link(position + 1, "Next run")),
    makeElement("h1", { tabindex: -1 }, id), makeElement("p", { class: "lead" }, `${run.label}, seed ${run.seed}.${accuracy} Run ${position + 1} of ${shared.runs.length}.`),
    ...notes.map((note) => makeElement("p", { class: "banner" }, note)),
    ...makeTrainingSection(run.curves), ...makeConfusionSection(run.confusion), ...makeMisclassifiedSection(run.misclassified), ...makeMetricsSection(run.metrics),
    ...makeHistorySection(run.events), ...makeEntriesSection("Settings", shared.settings, run.settings), ...makeEntriesSection("Provenance", shared.provenance, run.provenance));
}

// Show the run that the address names, or the report.
function showPage() {
  const id = location.hash.startsWith("#run-") ? decodeURIComponent(location.hash.slice(5)) : "";
  const data = shared.runs.includes(id) ? document.getElementById(`run-data-${id}`) : null;
  dataTables.length = numReportTables;
  if (runPage) runPage.remove();
  else scrollPosition = scrollY;
  runPage = data && drawRun(id, JSON.parse(data.textContent));
  report.hidden = Boolean(runPage);
  document.title = runPage ? `${id}: ${reportTitle}` : reportTitle;
  if (runPage) {
    document.querySelector(".skip").after(runPage);
    scrollTo(0, 0);
    runPage.querySelector("h1").focus({ preventScroll: true });
  } else if (location.hash.length > 1) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  else scrollTo(0, scrollPosition);
}

addEventListener("hashchange", showPage);
if (location.hash.startsWith("#run-")) showPage();
