// The report on paper: a handover sheet of few pages, made when the browser prints.

import { $, element, plural } from "./dom.js";
import { model } from "./model.js";
import { STATUS, timeOf } from "./signing.js";
import { labelOf, nameOf, specimen } from "./specimen.js";
import { isOpen, titleOf } from "./words.js";

const SIDE = 72; // pixels of a cell; 14 mm on paper
const MOST_NAMES = 10; // of cells that are not reviewed

const fact = (name, value) =>
  element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value || "–" }));

function cellFigure(cell) {
  const canvas = element("canvas", { width: SIDE, height: SIDE });
  canvas.getContext("2d").drawImage(cell.canvas, 0, 0, SIDE, SIDE);
  return element(
    "figure",
    { className: "small-cell" },
    canvas,
    element("figcaption", { textContent: caption(cell) }),
  );
}

const caption = ({ picture, number }) =>
  `${picture.order + 1}${picture.mode === "all" ? `·${number + 1}` : ""}`;

// Return the names of cells, of many only the first and how many there are beside them.
function fewOf(cells) {
  const names = cells.slice(0, MOST_NAMES).map(titleOf).join("; "),
    rest = cells.length - MOST_NAMES;
  return rest > 0 ? `${names}; and ${plural(rest, "other")}` : names;
}

// Return what the reports said that this one replaces, the last one first.
function earlierReports() {
  const rows = specimen.earlier.toReversed().map(({ status, reviewer, at, report }) => {
    const { fingerprint, replaces, counts } = report,
      values = Object.entries(counts).map(([label, count]) => `${nameOf(label)} ${count}`);
    return element(
      "li",
      {},
      `${STATUS[status] ?? status}, signed by ${reviewer}${at ? `, ${timeOf(at)}` : ""}: ${values.join(", ")}. `,
      `Fingerprint ${fingerprint}${replaces ? `, replaces ${replaces}` : ""}.`,
    );
  });
  if (!rows.length) return [];
  const title = specimen.isSigned ? "Replaced reports" : "Signed reports, changed since";
  return [element("section", {}, element("h3", { textContent: title }), element("ul", {}, ...rows))];
}

function fill() {
  const cells = specimen.cells;
  document.body.classList.toggle("has-sheet", cells.length > 0);
  if (!cells.length) return;
  const { specimen: id, accession } = specimen.ids,
    { name, version, sha256 } = cells[0].model,
    site = model()?.site;
  const classes = new Map();
  for (const cell of cells) {
    const place = isOpen(cell) ? nameOf(labelOf(cell)) : "not labelled";
    classes.set(place, [...(classes.get(place) ?? []), cell]);
  }
  const order = Object.keys(cells[0].prediction.probabilities).map(nameOf);
  const rank = ([place]) => (order.indexOf(place) + order.length + 1) % (order.length + 1); // others are last
  const table = $("differential").cloneNode(true);
  table.removeAttribute("id");
  const { waiting, isSigned, signature } = specimen;
  $("sheet").replaceChildren(
    element("h2", { textContent: "Differential count" }),
    element(
      "dl",
      {},
      fact("Specimen", id),
      fact("Accession number", accession),
      fact("Status", $("report-status").textContent),
      fact("Model", `${name} ${version} (${sha256.slice(0, 12)})`),
      fact("Verified for", site ? `${site.name}, ${site.verified_at.slice(0, 10)}` : "no laboratory"),
      fact("Printed", new Date().toLocaleString()),
      ...(isSigned ? [fact("Fingerprint", signature.report.fingerprint)] : []),
      ...(isSigned && signature.report.replaces ? [fact("Replaces", signature.report.replaces)] : []),
    ),
    ...($("counted").hidden ? [] : [table]),
    element("p", {
      textContent: `95 % intervals: ${$("interval-method").textContent}. ${$("agreement").textContent}`,
    }),
    element("ul", {}, ...[...$("warnings").children].map((row) => row.cloneNode(true))),
    ...(waiting.length
      ? [
          element(
            "p",
            {},
            element("strong", { textContent: `Not reviewed: ${plural(waiting.length, "cell")}. ` }),
            `${fewOf(waiting)}.`,
          ),
        ]
      : []),
    ...earlierReports(),
    ...[...classes]
      .sort((a, b) => rank(a) - rank(b))
      .map(([place, some]) =>
        element(
          "section",
          {},
          element("h3", { textContent: `${place} (${some.length})` }),
          element("div", { className: "small-cells" }, ...some.map(cellFigure)),
        ),
      ),
    element("p", {
      className: "small",
      textContent: `Pictures: ${specimen.pictures.map(({ name: file, order }) => `${order + 1} ${file}`).join(", ")}.`,
    }),
    element("p", {
      className: "small",
      textContent: "Not for diagnosis. A person must review every result.",
    }),
    element("p", { className: "signature", textContent: "Date, signature" }),
  );
}

export function listenToPrint() {
  window.addEventListener("beforeprint", fill);
  specimen.addEventListener("cleared", () => {
    document.body.classList.remove("has-sheet");
    $("sheet").replaceChildren();
  });
}
