"use strict";
// Tables: drawn from their JSON, the first rows of long ones; sorted by a button in each head, filtered by words.
// Whatever is shown is set as text, never as HTML.

const FIRST_ROWS = 25;
const MORE_ROWS = 2000;
const PRINTED_ROWS = 200;
const ABSENT = "–";
const collator = new Intl.Collator("en", { numeric: true });

// Make an element; children are elements or texts.
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A formatter takes far longer to make than to use.
const formatters = new Map();
function formatter(digits) {
  if (!formatters.has(digits)) formatters.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits ?? 0, maximumFractionDigits: digits ?? 6 }));
  return formatters.get(digits);
}

function shownNumber(value, digits, signed) {
  if (value === null) return ABSENT;
  const text = formatter(digits).format(Math.abs(value));
  const none = !/[1-9]/.test(text);
  return (value < 0 && !none ? "−" : signed && !none ? "+" : "") + text;
}

function shownInterval([value, low, high], column) {
  const shown = (number) => shownNumber(number, column.digits, column.signed);
  if (value === null || low === null || high === null) return shown(value);
  return `${shown(value)} (${shown(low)}${column.signed ? " to " : "–"}${shown(high)})`;
}

function shownP(value) {
  if (value === null) return ABSENT;
  return value < 0.001 ? "< 0.001" : value.toFixed(value < 0.1 ? 3 : 2);
}

function shown(column, row) {
  if (column.codes) return column.words[column.codes[row]];
  const values = column.numbers.map((numbers) => numbers[row]);
  if (column.kind === "interval") return shownInterval(values, column);
  return column.kind === "p" ? shownP(values[0]) : shownNumber(values[0], column.digits, column.signed);
}

// Order two rows; what is absent comes last whichever way.
function compare(column, sign, a, b) {
  if (column.codes) {
    const [one, other] = [column.words[column.codes[a]], column.words[column.codes[b]]];
    return one === "" || other === "" ? (one === "") - (other === "") : sign * collator.compare(one, other);
  }
  const [one, other] = [column.numbers[0][a], column.numbers[0][b]];
  return one === null || other === null ? (one === null) - (other === null) : sign * (one - other);
}

class Sheet {
  constructor(figure, data) {
    this.columns = data.columns;
    for (const column of this.columns) column.bold = new Set(column.strong);
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
    this.filter.addEventListener("input", () => this.choose());
    this.more.firstChild.addEventListener("click", () => this.draw((this.limit += MORE_ROWS)));
    this.draw();
  }

  // Numbers begin with the highest, texts with A; again turns the order round.
  sort(index) {
    const column = this.columns[index];
    const before = this.heads[index].getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending") : column.codes ? "ascending" : "descending";
    for (const head of this.heads) head.removeAttribute("aria-sort");
    this.heads[index].setAttribute("aria-sort", order);
    this.all.sort((a, b) => compare(column, order === "ascending" ? 1 : -1, a, b));
    this.choose();
  }

  // Keep the rows in which every word of the filter stands somewhere.
  choose() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !this.texts) {
      this.texts = this.all.map(() => "");
      for (const row of this.all) this.texts[row] = this.columns.map((column) => shown(column, row)).join(" ").toLowerCase();
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
    return make("tr", {}, ...this.columns.map((column, index) => {
      const cell = make(index ? "td" : "th", index ? {} : { scope: "row" });
      const text = shown(column, row);
      if (!column.codes) cell.className = "number";
      cell.append(column.kind === "run" ? make("a", { href: `#run-${encodeURIComponent(text)}` }, text) : text);
      if (column.bold.has(row)) cell.classList.add("strong");
      return cell;
    }));
  }
}

const sheets = [...document.querySelectorAll("figure.table")].map((figure) => new Sheet(figure, JSON.parse(figure.querySelector("script").textContent)));

matchMedia("print").addEventListener("change", (print) => {
  for (const sheet of sheets) sheet.draw(print.matches ? Math.max(PRINTED_ROWS, sheet.limit) : sheet.limit);
});
