// Small things that the rest uses: elements by id, new ones, and numbers for people.

const $ = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en");

function number(value) {
  if (value >= 100) return whole.format(Math.round(value));
  return String(Number(value.toFixed(value >= 1 ? 1 : 2)));
}

function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value < 10 ? Number(value.toFixed(1)) : value.toFixed(0)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

const percent = (share) => `${Math.round(share * 100)}%`;

const finePercent = (share) => (share > 0 && share < 0.1 ? `${(share * 100).toFixed(1)}%` : percent(share));

const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const slotLetter = (slot) =>
  String.fromCharCode(65 + (slot % 26)) + (slot >= 26 ? Math.floor(slot / 26) : "");

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
