// Small tools that every module of the page uses: elements, numbers as text, messages, downloads.

export const MIB = 2 ** 20;
export const $ = (id) => document.getElementById(id);

// An error with a title and a detail for the user. problem: the service's problem document, if it is one.
// holds: returns whether it is still true; see `dropSettled`.
export class Failure extends Error {
  constructor(title, detail, problem = {}, holds = () => true) {
    super(detail);
    Object.assign(this, { title, detail, code: problem.code, errors: problem.errors ?? [], holds });
  }
}

export function element(tag, properties = {}, ...children) {
  const { dataset, style, attributes, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(style ?? {})) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export const setStatus = (text) => {
  $("status").textContent = text;
};

export function showProblem(error) {
  if (error.name === "AbortError") return;
  showMessage("problem", error.title ?? "Something went wrong.", error.detail ?? error.message, error.holds);
}

const stillHolds = new WeakMap(); // row of a message → whether it is still true

// Remove messages that no longer hold.
export function dropSettled() {
  for (const row of [...$("problems").children]) if (!stillHolds.get(row)()) row.remove();
}

// kind: problem or note. holds: as that of Failure.
export function showMessage(kind, title, detail = "", holds = () => true) {
  const shown = [...$("problems").children].map((row) => row.querySelector("p").textContent);
  if (shown.includes(`${title} ${detail}`)) return;
  const row = element("div", { className: kind });
  const text = element("p", {}, element("strong", { textContent: title }), ` ${detail}`);
  const close = element("button", { type: "button", textContent: "Dismiss" });
  close.addEventListener("click", () => row.remove());
  row.append(text, close);
  stillHolds.set(row, holds);
  $("problems").append(row);
}

export function showProgress(text, done, total) {
  $("progress").hidden = false;
  $("progress-label").textContent = text;
  $("bar").max = Math.max(total, 1);
  $("bar").value = done;
}

// Run an action at an event of an element; its errors are shown.
export const listen = (id, event, action) =>
  $(id).addEventListener(event, (occurred) =>
    Promise.resolve()
      .then(() => action(occurred))
      .catch(showProblem),
  );

// Move the focus on from a control that is hidden or disabled now, lest it falls to the start of the page.
export function leaveControl(id, next) {
  if ([document.body, $(id)].includes(document.activeElement)) $(next).focus();
}

export function save(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const saveJson = (name, value) =>
  save(name, new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));

export function saveCsv(name, rows) {
  // A leading apostrophe keeps a spreadsheet from evaluating a text as a formula.
  const field = (value) => {
    const text = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  save(
    name,
    new Blob(["\ufeff", ...rows.map((row) => `${row.map(field).join(",")}\r\n`)], { type: "text/csv" }),
  );
}
