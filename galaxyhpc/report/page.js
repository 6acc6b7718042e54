"use strict";
// Tables: drawn from their JSON, first rows only if long; sorted by a button in each heading, filtered by words.
// All content is set as text, never as HTML.

const FIRST_ROWS = 25;
const MORE_ROWS = 2000;
const PRINTED_ROWS = 200;
const MISSING = "–";
const collator = new Intl.Collator("en", { numeric: true });

// Make an element; children are elements or texts.
function makeElement(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Making a formatter takes far longer than using it.
const formatters = new Map();
function getFormatter(digits) {
  if (!formatters.has(digits)) formatters.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits ?? 0, maximumFractionDigits: digits ?? 6 }));
  return formatters.get(digits);
}

function formatNumber(value, digits, signed) {
  if (value === null) return MISSING;
  const text = getFormatter(digits).format(Math.abs(value));
  const isZero = !/[1-9]/.test(text);
  return (value < 0 && !isZero ? "−" : signed && !isZero ? "+" : "") + text;
}

function formatInterval([value, low, high], column) {
  const format = (number) => formatNumber(number, column.digits, column.signed);
  if (value === null || low === null || high === null) return format(value);
  return `${format(value)} (${format(low)}${column.signed ? " to " : "–"}${format(high)})`;
}

function formatPValue(value) {
  if (value === null) return MISSING;
  return value < 0.001 ? "< 0.001" : value.toFixed(value < 0.1 ? 3 : 2);
}

function formatCell(column, row) {
  if (column.codes) return column.words[column.codes[row]];
  const values = column.numbers.map((numbers) => numbers[row]);
  if (column.kind === "interval") return formatInterval(values, column);
  return column.kind === "p" ? formatPValue(values[0]) : formatNumber(values[0], column.digits, column.signed);
}

// Order two rows; missing values come last in either order.
function compareRows(column, sign, a, b) {
  if (column.codes) {
    const [first, second] = [column.words[column.codes[a]], column.words[column.codes[b]]];
    return first === "" || second === "" ? (first === "") - (second === "") : sign * collator.compare(first, second);
  }
  const [first, second] = [column.numbers[0][a], column.numbers[0][b]];
  return first === null || second === null ? (first === null) - (second === null) : sign * (first - second);
}

class DataTable {
  constructor(figure, data) {
    this.columns = data.columns;
    for (const column of this.columns) column.bold = new Set(column.bold);
    this.all = Array.from({ length: data.rows }, (_, row) => row);
    this.rows = this.all;
    this.limit = FIRST_ROWS;
    this.heads = [...figure.querySelectorAll("thead th")];
    this.body = figure.querySelector("tbody");
    this.filter = figure.querySelector("input");
    this.count = figure.querySelector("output");
    this.more = figure.querySelector(".more");
    figure.querySelector(".tools").hidden = data.rows < 2;
    this.heads.forEach((head, index) => head.firstChild.addEventListener("click", () => this.sort(index)));
    this.filter.addEventListener("input", () => this.applyFilter());
    this.more.firstChild.addEventListener("click", () => this.draw((this.limit += MORE_ROWS)));
    this.draw();
  }

  // Sort numbers from the highest, texts from A; a second click reverses the order.
  sort(index) {
    const column = this.columns[index];
    const before = this.heads[index].getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending") : column.codes ? "ascending" : "descending";
    for (const head of this.heads) head.removeAttribute("aria-sort");
    this.heads[index].setAttribute("aria-sort", order);
    this.all.sort((a, b) => compareRows(column, order === "ascending" ? 1 : -1, a, b));
    this.applyFilter();
  }

  // Keep the rows that contain every word of the filter.
  applyFilter() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !this.texts) {
      this.texts = this.all.map(() => "");
      for (const row of this.all) this.texts[row] = this.columns.map((column) => formatCell(column, row)).join(" ").toLowerCase();
    }
    this.rows = words.length ? this.all.filter((row) => words.every((word) => this.texts[row].includes(word))) : this.all;
    this.draw();
  }

  draw(limit = this.limit) {
    const rows = this.rows.slice(0, limit).map((row) => this.row(row));
    this.body.replaceChildren(...rows);
    const [number, all] = [this.rows.length, this.all.length].map((count) => count.toLocaleString("en"));
    this.count.textContent = number === all ? `${all} rows` : `${number} of ${all} rows`;
    const left = this.rows.length - rows.length;
    this.more.hidden = !left;
    this.more.firstChild.textContent = left > MORE_ROWS ? `Show ${MORE_ROWS.toLocaleString("en")} more of ${number} rows` : `Show all ${number} rows`;
    this.more.dataset.printed = `The first ${rows.length} of ${number} rows.`;
    this.body.closest(".box").classList.toggle("long", rows.length > FIRST_ROWS);
  }

  row(row) {
    return makeElement("tr", {}, ...this.columns.map((column, index) => {
      const cell = makeElement(index ? "td" : "th", index ? {} : { scope: "row" });
      const text = formatCell(column, row);
      if (!column.codes) cell.className = "number";
      cell.append(column.kind === "run" ? makeElement("a", { href: `#run-${encodeURIComponent(text)}` }, text) : text);
      if (column.bold.has(row)) cell.classList.add("strong");
      return cell;
    }));
  }
}

const dataTables = [...document.querySelectorAll("figure.table")].map((figure) => new DataTable(figure, JSON.parse(figure.querySelector("script").textContent)));

matchMedia("print").addEventListener("change", (print) => {
  for (const table of dataTables) table.draw(print.matches ? Math.max(PRINTED_ROWS, table.limit) : table.limit);
});
