// The evaluation of the model on a labelled archive: its report, curve and misclassified images.

import { copy, curlCommand, formOption } from "./curl.js";
import {
  $,
  element,
  Failure,
  listen,
  MIB,
  number,
  percent,
  plural,
  saveCsv,
  saveJson,
  setStatus,
  showMessage,
  showProblem,
  showProgress,
} from "./dom.js";
import { model } from "./model.js";
import { request } from "./service.js";
import { extract, readDirectory } from "./zip.js";

const MISTAKES_PER_PAGE = 24;

const state = { report: null, archive: null, shown: 0, isSaved: true };

export const isEvaluationUnsaved = () => !state.isSaved;

export async function evaluate(file, signal) {
  const form = new FormData();
  form.append("archive", file, file.name);
  showProgress(`Uploading ${file.name}`, 0, 1);
  const response = await request("evaluate", {
    method: "POST",
    body: form,
    signal,
    headers: { Accept: "text/event-stream" },
  });
  for await (const { event, data } of serverSentEvents(response.body)) {
    if (event === "progress") {
      const rate = data.images_per_second ? `, ${data.images_per_second.toFixed(0)} images/s` : "";
      showProgress(`Evaluated ${data.done} of ${plural(data.total, "image")}${rate}`, data.done, data.total);
    } else if (event === "error") throw new Failure(data.title, data.detail, data);
    else if (event === "result") {
      Object.assign(state, { report: data, archive: file, shown: 0, isSaved: false });
      await showReport();
      return;
    }
  }
  throw new Failure("The evaluation was interrupted.", "The connection was lost before the result arrived.");
}

async function* serverSentEvents(stream) {
  let incomplete = ""; // the start of an event whose end has not arrived
  for await (const text of textChunks(stream)) {
    const blocks = (incomplete + text).split(/\r?\n\r?\n/);
    incomplete = blocks.pop();
    for (const block of blocks) {
      const fields = block
        .split(/\r?\n/)
        .map((line) => line.match(/^(\w+): ?(.*)$/))
        .filter(Boolean);
      const data = fields
        .filter(([, name]) => name === "data")
        .map(([, , value]) => value)
        .join("\n");
      if (data) yield { event: fields.find(([, name]) => name === "event")?.[2], data: JSON.parse(data) };
    }
  }
}

async function* textChunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

async function showReport() {
  const report = state.report,
    { current, ...verification } = report.verification,
    level = percent(report.confidence_intervals.level, 0);
  const intervalText = (interval) =>
    interval === null
      ? "interval not known"
      : `${level} interval ${interval.map((end) => end.toFixed(3)).join(" – ")}, over ${report.confidence_intervals.unit}s`;
  const kept = current.right_when_kept;
  const scores = [
    ["Images", String(report.n), report.errors.length ? `${report.errors.length} not decoded, left out` : ""],
    ["Accuracy", percent(report.accuracy, 2), intervalText(report.confidence_intervals.accuracy)],
    ["Balanced accuracy", percent(verification.balanced_accuracy, 2), intervalText(verification.interval)],
    ["Sent to review", percent(current.review_share), "with the bundle’s thresholds"],
    ["Right when kept", kept === null ? "–" : percent(kept, 2), "accuracy of the images not sent to review"],
    ["Macro F1", number(report.macro_avg.f1), intervalText(report.confidence_intervals.macro_f1)],
    ["Weighted F1", number(report.weighted_avg.f1), ""],
    ["MSE", number(report.mse), "of class indices"],
    ["RMSE", number(report.rmse), "of class indices"],
    ["Cohen’s κ", number(report.cohen_kappa), ""],
    ["ROC AUC", number(report.roc_auc_ovr), "one class against the rest"],
    ["ECE", number(report.ece), "expected calibration error"],
  ];
  $("scores").replaceChildren(
    ...scores.map(([name, value, note]) =>
      element(
        "div",
        {},
        element("dt", { textContent: name }),
        element("dd", {}, value, element("small", { textContent: note })),
      ),
    ),
  );
  fillTable(
    $("confusion"),
    ["true \\ predicted", ...report.labels, "total"],
    report.labels.map((label, row) => [
      label,
      ...report.confusion_matrix[row],
      report.per_class[label].support,
    ]),
    (row, column) => row === column - 1,
  );
  const averages = [
    ["macro average", report.macro_avg],
    ["weighted average", report.weighted_avg],
  ];
  fillTable(
    $("by-class"),
    ["class", "precision", "recall", "F1", "specificity", "images"],
    [...report.labels.map((label) => [label, report.per_class[label]]), ...averages].map(([name, row]) => [
      name,
      number(row.precision),
      number(row.recall),
      number(row.f1),
      number(row.specificity),
      row.support,
    ]),
  );
  showReview(report.verification);
  report.misclassified.sort((a, b) => b.confidence - a.confidence);
  $("mistakes").replaceChildren();
  $("mistakes-title").textContent = report.misclassified.length
    ? `Misclassified images (${report.misclassified.length}), highest confidence first`
    : "No misclassified images";
  $("evaluation").hidden = false;
  for (const { detail } of report.warnings ?? []) showMessage("note", detail);
  for (const { title, filename, detail } of report.errors.slice(0, 5))
    showProblem(new Failure(title, `${filename}: ${detail}`));
  if (report.errors.length > 5)
    showProblem(
      new Failure(`${report.errors.length - 5} more images were left out.`, "The saved JSON lists them all."),
    );
  setStatus(`${plural(report.n, "image")} evaluated: accuracy ${percent(report.accuracy, 2)}.`);
  $("evaluation").scrollIntoView();
  await showMistakes();
}

// Show what the bundle's thresholds do to these images, those proposed for them, and what others would.
function showReview(verification) {
  const { cells, current, proposed, target, warnings, familiar_cells: familiar } = verification;
  const both = ({ thresholds, familiar: others }, name) =>
    [...new Set([thresholds, others ?? thresholds].map((one) => number(one[name])))].join(" or ");
  const share = (value) => (value === null ? "–" : percent(value));
  const row = (name, marks) => [
    name,
    both(marks, "confidence"),
    both(marks, "ood_score"),
    percent(marks.review_share),
    share(marks.right_when_kept),
    share(marks.others_marked),
  ];
  fillTable(
    $("thresholds"),
    [
      "thresholds",
      "confidence at least",
      "OOD score at most",
      "sent to review",
      "right when kept",
      "cells of no class marked",
    ],
    [
      row("of the bundle", current),
      ...(proposed ? [row(`proposed, for ${Number((100 * target).toFixed(4))} % right`, proposed)] : []),
    ],
  );
  $("curve").replaceChildren(...curveParts(verification, proposed ?? current));
  const sets =
    familiar === null
      ? []
      : [
          "Where there are two numbers, the second is for pictures that look like those that the model was " +
            `trained on: ${familiar} of these ${cells} cells.`,
        ];
  const texts = [...sets, ...warnings].map((text) => element("li", { textContent: text }));
  $("cautions").replaceChildren(...texts);
}

const CURVE_BOTTOM = 0.5; // lowest share of right answers that is drawn

// Return the lines of the curve in a box of 460 × 260 pixels. marked: the thresholds that get a dot.
function curveParts({ curve, target }, marked) {
  const x = (share) => 44 + 392 * share,
    y = (share) => 10 + (206 * (1 - Math.max(share, CURVE_BOTTOM))) / (1 - CURVE_BOTTOM);
  const svg = (tag, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  };
  const across = (share, more = {}) => svg("line", { x1: x(0), x2: x(1), y1: y(share), y2: y(share), ...more });
  const ticks = [0.5, 0.6, 0.7, 0.8, 0.9, 1].flatMap((share) => [
    across(share),
    svg("text", { x: 38, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)),
  ]);
  const shares = [0, 0.25, 0.5, 0.75, 1].map((share) =>
    svg("text", { x: x(share), y: 238, "text-anchor": "middle" }, percent(share, 0)),
  );
  const points = curve.map(({ kept, right }) => `${x(kept)},${y(right)}`).join(" ");
  const { review_share: share, right_when_kept: right } = marked;
  return [
    ...ticks,
    ...shares,
    svg("text", { x: x(0.5), y: 256, "text-anchor": "middle" }, "kept without review"),
    across(target, { class: "target" }),
    svg("polyline", { points }),
    ...(right === null ? [] : [svg("circle", { cx: x(1 - share), cy: y(right), r: 5 })]),
  ];
}

// isDiagonal(row, column): whether a cell is highlighted as correct.
function fillTable(table, head, rows, isDiagonal = () => false) {
  const cells = (row, index) =>
    row.map((value, column) =>
      column === 0
        ? element("th", { scope: "row", textContent: value })
        : element("td", { textContent: value, className: isDiagonal(index, column) ? "correct" : "" }),
    );
  table.replaceChildren(
    table.caption,
    element(
      "thead",
      {},
      element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text }))),
    ),
    element("tbody", {}, ...rows.map((row, index) => element("tr", {}, ...cells(row, index)))),
  );
}

async function showMistakes() {
  const mistakes = state.report.misclassified.slice(state.shown, state.shown + MISTAKES_PER_PAGE);
  state.shown += mistakes.length;
  $("more-mistakes").hidden = state.shown >= state.report.misclassified.length;
  const listed = mistakes.length ? await readDirectory(state.archive).catch(() => []) : [];
  const entries = new Map(listed.map((entry) => [entry.name.normalize("NFC"), entry]));
  await Promise.all(
    mistakes.map(async (mistake) => {
      const preview = element("div", { className: "preview" }),
        fit = element("div", { className: "fit" });
      const showReason = (reason) => {
        preview.classList.add("unavailable");
        preview.dataset.reason = reason;
      };
      preview.append(fit);
      $("mistakes").append(
        element(
          "li",
          { className: "card" },
          preview,
          element(
            "div",
            { className: "text" },
            element(
              "h3",
              {},
              mistake.predicted,
              element("span", { textContent: percent(mistake.confidence) }),
            ),
            element("p", { className: "review", textContent: `⚑ Labelled ${mistake.label}.` }),
            element("p", { className: "name", textContent: mistake.filename }),
          ),
        ),
      );
      const entry = entries.get(mistake.filename.normalize("NFC"));
      if (!entry) {
        showReason("No preview: this page cannot read the image from the archive.");
        return;
      }
      try {
        const url = URL.createObjectURL(
          await extract(state.archive, entry, model().limits.max_image_mib * MIB),
        );
        const image = element("img", {
          alt: `${mistake.filename}: predicted ${mistake.predicted}, labelled ${mistake.label}`,
        });
        image.addEventListener("load", () => {
          setAspectRatio(fit, image);
          URL.revokeObjectURL(url);
        });
        image.addEventListener("error", () => {
          showReason("No preview: this browser cannot show this format.");
          URL.revokeObjectURL(url);
        });
        image.src = url;
        fit.append(image);
      } catch {
        showReason("No preview: this page cannot read the image from the archive.");
      }
    }),
  );
}

function setAspectRatio(fit, image) {
  const ratio = image.naturalWidth / image.naturalHeight;
  fit.style.setProperty("--ratio", ratio);
  fit.classList.toggle("tall", ratio < 4 / 3);
}

function reportRows() {
  const { labels, per_class: scores, confusion_matrix: matrix } = state.report;
  return [
    [
      "class",
      "precision",
      "recall",
      "f1",
      "specificity",
      "support",
      ...labels.map((label) => `predicted ${label}`),
    ],
    ...labels.map((label, row) => [
      label,
      ...["precision", "recall", "f1", "specificity", "support"].map((name) => scores[label][name]),
      ...matrix[row],
    ]),
    [],
    ["filename", "label", "predicted", "confidence"],
    ...state.report.misclassified.map((mistake) => [
      mistake.filename,
      mistake.label,
      mistake.predicted,
      mistake.confidence,
    ]),
  ];
}


export function listenToEvaluation() {
  listen("save-report-json", "click", () => {
    saveJson("leuko-evaluation.json", state.report);
    state.isSaved = true;
  });
  listen("save-report-csv", "click", () => {
    saveCsv("leuko-evaluation.csv", reportRows());
    state.isSaved = true;
  });
  listen("copy-report-curl", "click", () =>
    copy(curlCommand("evaluate", [formOption("archive", state.archive.name)])),
  );
  listen("more-mistakes", "click", showMistakes);
}
