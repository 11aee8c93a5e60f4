// What leaves the page: reports, tables, a print, and labelled cells that teach the next model.

import { cutOut, withRoom } from "./crops.js";
import { copy, curlCommand, formOption, quote } from "./curl.js";
import { countOf, differentialOptions, updateDifferential } from "./differential.js";
import { $, Failure, listen, plural, save, saveCsv, saveJson, setStatus, showMessage } from "./dom.js";
import { fileName, safe } from "./naming.js";
import { request } from "./service.js";
import { checkReport, checkSent, reportBody } from "./signing.js";
import { labelOf, NOT_A_CELL, specimen, UNIDENTIFIED } from "./specimen.js";
import { pack } from "./zip_writer.js";

// --- reports --------------------------------------------------------------------------------------------

// The service's response is saved as it is, once it is complete.
async function saveReport(name, accept) {
  const response = await request("differential", differentialOptions(reportBody(), accept));
  save(name, await response.blob());
}

async function saveReportJson() {
  const body = reportBody(),
    differential = await countOf(body);
  const { predictions, errors, empty, reviewer, replaces } = body;
  saveJson(fileName("report.json"), { differential, predictions, errors, empty, reviewer, replaces });
}

// Return the columns that say what a row is of, with their values. model: undefined for a picture without cells.
function about(model) {
  const { ids, signature } = specimen;
  return {
    ...ids,
    status: signature?.status ?? "preliminary",
    reviewer: signature?.reviewer ?? "",
    fingerprint: signature?.report.fingerprint ?? "",
    replaces: signature?.report.replaces ?? "",
    ...{ model: model?.name, model_version: model?.version, model_sha256: model?.sha256 },
  };
}

async function saveCounts() {
  const body = reportBody(),
    known = about(body.model),
    earlier = formerColumns(specimen.earlier);
  const differential = await countOf(body),
    { counts, percent, per_100_leukocytes: ratios, intervals, n, leukocytes, fingerprint } = differential,
    common = { ...known, fingerprint };
  const bounds = (method, label) => intervals[method][label] ?? ["", ""];
  const rows = [...new Set([...Object.keys(counts), ...earlier.labels])];
  saveCsv(fileName("counts.csv"), [
    [
      ...Object.keys(common),
      ...["cells", "leukocytes", "class", "count", "percent", "per_100_leukocytes"],
      ...["exact_low", "exact_high", "wilson_low", "wilson_high"],
      ...earlier.head,
    ],
    ...rows.map((label) => [
      ...Object.values(common),
      ...[n, leukocytes, label, counts[label] ?? 0, percent[label], ratios[label]],
      ...bounds("exact", label),
      ...bounds("wilson", label),
      ...earlier.of(label),
    ]),
  ]);
}

// Return the columns of a table of counts for the reports that this one replaces, the last one first: beside the
// counts, so that a sum over rows counts no cell twice.
function formerColumns(signatures) {
  const formers = signatures.toReversed();
  return {
    labels: formers.flatMap(({ report }) => Object.keys(report.counts)),
    head: formers.flatMap((_, rank) =>
      ["status", "reviewer", "signed_at", "fingerprint", "count"].map((name) => `former_${rank + 1}_${name}`),
    ),
    of: (label) =>
      formers.flatMap(({ status, reviewer, at, report }) => [
        ...[status, reviewer, at, report.fingerprint, report.counts[label] ?? 0],
      ]),
  };
}

function saveCells() {
  checkReport();
  // Models that were switched meanwhile may have other classes: those of all cells are columns.
  const classes = [
    ...new Set(specimen.cells.flatMap(({ prediction }) => Object.keys(prediction.probabilities))),
  ];
  const head = [
    ...["filename", "cell", "label", "model_label", "reviewed", "confidence"],
    ...classes,
    ...["ood_score", "review", "review_reasons", "left", "top", "width", "height", "image_sha256"],
  ];
  const rows = specimen.pictures.flatMap(({ name, cells, problem, empty }) =>
    cells.length
      ? cells.map((cell) => [...Object.values(about(cell.model)), ...rowOf(cell, classes), ""])
      : [
          [
            ...Object.values(about()),
            name,
            ...Array(head.length - 1),
            empty ? empty.join(" ") : problem?.detail,
          ],
        ],
  );
  saveCsv(fileName("cells.csv"), [[...Object.keys(about()), ...head, "error"], ...rows]);
}

function rowOf(cell, classes) {
  const { prediction, reviewed } = cell,
    { frame } = prediction;
  return [
    ...[
      prediction.filename,
      prediction.cell,
      labelOf(cell),
      prediction.label,
      reviewed,
      prediction.confidence,
    ],
    ...classes.map((label) => prediction.probabilities[label]),
    ...[prediction.ood_score, prediction.review, prediction.review_reasons.join(" ")],
    ...[frame.left, frame.top, frame.width, frame.height, prediction.image_sha256],
  ];
}

// --- labelled cells -------------------------------------------------------------------------------------

// Save the cells that a person judged, in a folder for each class: what `leuko verify` and `leuko-train adapt`
// take. A picture of one cell is in it as it is, a cell of a field as its frame and what is around it.
async function saveLabelled() {
  const isLabelled = ({ reviewed }) => reviewed !== null && ![UNIDENTIFIED, NOT_A_CELL].includes(reviewed);
  const files = [],
    table = [["file", "label", "model_label", "confidence", "picture", "cell", "image_sha256"]];
  const hidden = [];
  let unshown = 0; // cells of hidden pictures
  for (const picture of specimen.pictures) {
    const cells = picture.cells.filter(isLabelled);
    if (!cells.length) continue;
    try {
      for (const { cell, blob, suffix } of await picturesOf(picture, cells)) {
        const name = `${cell.reviewed}/${sourceName()}/${nameOf(picture)}${suffix}`;
        const { label, confidence, image_sha256: sha256 } = cell.prediction;
        files.push({ name, blob });
        table.push([name, cell.reviewed, label, confidence, picture.name, cell.prediction.cell, sha256]);
      }
    } catch {
      hidden.push(picture.name);
      unshown += cells.length;
    }
  }
  const leftOut = `${plural(unshown, "labelled cell")} left out: this browser cannot show the format, and cuts out none.`;
  if (!files.length && hidden.length) throw new Failure(leftOut, hidden.join(", "));
  if (!files.length)
    throw new Failure(
      "No cell has a label of yours.",
      "Confirm or correct labels first: a set of the model’s own labels would teach it nothing.",
    );
  if (hidden.length) showMessage("note", leftOut, hidden.join(", "));
  files.push({
    name: "cells.csv",
    blob: new Blob([table.map((row) => `${row.map(quoted).join(",")}\r\n`).join("")]),
  });
  save(fileName("labelled.zip"), await pack(files));
  setStatus(`${plural(files.length - 1, "labelled cell")} saved${unshown ? `, ${unshown} left out` : ""}.`);
}

const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
// Names of pictures may be equal once they are safe; their numbers are not.
const nameOf = ({ name, order }) => `${String(order + 1).padStart(3, "0")}-${safe(name.replace(SUFFIX, ""))}`;
const SUFFIX = /\.\w+$/;
const sourceName = () => safe(specimen.ids.specimen) || "specimen"; // a folder: the group for intervals

async function picturesOf(picture, cells) {
  if (picture.mode === "one")
    return [{ cell: cells[0], blob: picture.file, suffix: picture.name.match(SUFFIX)?.[0] ?? "" }];
  const bitmap = await createImageBitmap(picture.file);
  try {
    return await Promise.all(
      cells.map(async (cell) => ({
        cell,
        blob: await cutOut(bitmap, withRoom(cell)),
        suffix: `-cell-${cell.number + 1}.png`,
      })),
    );
  } finally {
    bitmap.close();
  }
}

// --- print ----------------------------------------------------------------------------------------------

function print() {
  checkReport();
  window.print();
}

// --- for developers -------------------------------------------------------------------------------------

function differentialCommand() {
  checkSent();
  const used = specimen.pictures.filter(({ cells, empty }) => cells.length || empty),
    archives = new Set(used.map(({ archive }) => archive).filter(Boolean)),
    modes = new Set(used.map(({ mode }) => mode));
  if (modes.size > 1)
    throw new Failure("One command cannot do this.", "Some pictures are fields, others one cell each.");
  const command = curlCommand(modes.has("all") ? "differential?cells=all" : "differential", [
    ...used.map(({ name }) => formOption("files", name)),
    ...Object.entries(specimen.ids)
      .filter(([, value]) => value)
      .map(([name, value]) => `--form-string ${quote(`${name}=${value}`)}`),
  ]);
  return [...[...archives].map((archive) => `unzip -nq ${quote(archive)}`), command].join(" &&\n");
}

// --- events ---------------------------------------------------------------------------------------------

// Results that change while the action waits for the service are not in its file.
const listenToSave = (id, action) =>
  listen(id, "click", async () => {
    const { version } = specimen;
    await action();
    specimen.keep(version);
  });

export function listenToExports() {
  listenToSave("save-json", saveReportJson);
  listenToSave("save-csv", saveCells);
  listenToSave("save-counts", saveCounts);
  listenToSave("save-fhir", () => saveReport(fileName("report.fhir.json"), "application/fhir+json"));
  listenToSave("save-hl7", () => saveReport(fileName("report.hl7"), "application/hl7-v2"));
  listen("save-labelled", "click", saveLabelled);
  listen("print", "click", async () => {
    await updateDifferential();
    print();
  });
  listen("copy-curl", "click", () => copy(differentialCommand()));
}
