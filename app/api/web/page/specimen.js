// The specimen on the page: its pictures, their cells, and the label that a person gives to each. No DOM.

export const UNIDENTIFIED = "unidentified";
export const NOT_A_CELL = "not_a_cell";
export const TO_REVIEW = "to review"; // a place for cells, not a label
export const HIDDEN = "to label"; // the same in blind mode
const CLOSE = 0.1; // two classes whose probabilities differ by less are close

export const nameOf = (label) => (label === NOT_A_CELL ? "not a cell" : label);

// Return the two most probable labels of a cell with their probabilities.
export const bestTwo = ({ prediction }) =>
  Object.entries(prediction.probabilities)
    .sort((a, b) => b[1] - a[1])
    .slice(0, 2);

export function isClose(cell) {
  const [first, second] = bestTwo(cell);
  return second !== undefined && first[1] - second[1] < CLOSE;
}

export const labelOf = (cell) => cell.reviewed ?? cell.prediction.label;
export const isChanged = (cell) => cell.reviewed !== null && cell.reviewed !== cell.prediction.label;

// Events, with the cells that they are about: "added", "labelled", "blinded" (before "labelled"), "pictures" (some
// have no cells), "signed", "cleared".
class Specimen extends EventTarget {
  pictures = [];
  number = 1; // work for an earlier specimen is dropped
  blind = false;
  ids = { specimen: "", accession: "" };
  signatures = []; // of each signed report, see `sign`
  #past = [];
  #future = [];
  #version = 0;
  #saved = 0;

  get cells() {
    return this.pictures.flatMap(({ cells }) => cells);
  }

  // --- pictures -------------------------------------------------------------------------------------

  // items: [{ name, file }]; from a ZIP also archive, and a flaw instead of a file that is unreadable.
  // mode: whether each picture is "one" cell, or "all" its cells count.
  add(items, mode) {
    const added = items.map((item, number) => ({
      ...item,
      mode,
      order: this.pictures.length + number,
      url: item.file && URL.createObjectURL(item.file),
      cells: [],
      problem: null,
      empty: null, // why there is no cell: reasons for review
      size: null, // width and height, once the browser has decoded it
    }));
    this.pictures.push(...added);
    this.change();
    return added;
  }

  // Note the outcome of a picture: cells, a problem, or reasons why it is empty.
  settle(picture, { cells = [], problem = null, empty = null, model = null }) {
    if (!this.pictures.includes(picture)) return; // its specimen was cleared
    picture.cells = cells.map((prediction) => ({
      picture,
      prediction,
      model,
      reviewed: null,
      isUnsure: prediction.review || isClose({ prediction }),
      number: prediction.cell ?? 0,
    }));
    Object.assign(picture, { problem, empty });
    this.change();
    if (picture.cells.length) this.#tell("added", picture.cells);
    this.#tell("pictures", picture.cells);
  }

  // Return where a cell is shown: a label, or the place of cells that wait for one.
  placeOf(cell) {
    if (cell.reviewed !== null) return cell.reviewed;
    if (this.blind) return HIDDEN;
    return cell.isUnsure ? TO_REVIEW : cell.prediction.label;
  }

  isWaiting(cell) {
    return [TO_REVIEW, HIDDEN].includes(this.placeOf(cell));
  }

  get waiting() {
    return this.cells.filter((cell) => this.isWaiting(cell));
  }

  // Cells whose labels may be shown and counted.
  get counted() {
    return this.blind ? this.cells.filter(({ reviewed }) => reviewed !== null) : this.cells;
  }

  get agreement() {
    const reviewed = this.cells.filter(({ reviewed }) => reviewed !== null);
    return { reviewed: reviewed.length, kept: reviewed.filter((cell) => !isChanged(cell)).length };
  }

  // --- labels ---------------------------------------------------------------------------------------

  // Give a label to cells; null takes a person's label away. Return those that changed.
  label(cells, label) {
    return this.#label(cells.map((cell) => [cell, label]));
  }

  // Give each cell the model's label.
  confirm(cells) {
    return this.#label(
      cells.filter(({ reviewed }) => reviewed === null).map((cell) => [cell, labelOf(cell)]),
    );
  }

  #label(pairs) {
    const changes = pairs
      .filter(([cell, label]) => cell.reviewed !== label)
      .map(([cell, after]) => ({ cell, before: cell.reviewed, after }));
    if (!changes.length) return [];
    this.#past.push(changes);
    this.#future = [];
    return this.#apply(changes, "after");
  }

  undo() {
    const changes = this.#past.pop();
    if (!changes) return [];
    this.#future.push(changes);
    return this.#apply(changes, "before");
  }

  redo() {
    const changes = this.#future.pop();
    if (!changes) return [];
    this.#past.push(changes);
    return this.#apply(changes, "after");
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  #apply(changes, which) {
    for (const change of changes) change.cell.reviewed = change[which];
    const cells = changes.map(({ cell }) => cell);
    this.change();
    this.#tell("labelled", cells);
    return cells;
  }

  setBlind(blind) {
    this.blind = blind;
    this.#tell("blinded", this.cells);
    this.#tell("labelled", this.cells);
  }

  // --- what is signed and saved ---------------------------------------------------------------------

  // Return what a signature is about, as text: two of the same text are the same report.
  get content() {
    return JSON.stringify([
      this.ids,
      this.cells.map(({ prediction, reviewed, number }) => [prediction.image_sha256, number, reviewed]),
    ]);
  }

  get signature() {
    return this.signatures.at(-1) ?? null;
  }

  // The signed reports that the present one replaces, or will once it is signed.
  get earlier() {
    return this.isSigned ? this.signatures.slice(0, -1) : this.signatures;
  }

  get isSigned() {
    return this.signature !== null && this.signature.content === this.content;
  }

  // signature: reviewer, content, status, at (ISO 8601), and report (what a correction says of it).
  sign(signature) {
    this.signatures.push(signature);
    this.change();
    this.#tell("signed", []);
  }

  change() {
    this.#version++;
  }

  get version() {
    return this.#version;
  }

  // A file holds what there was at a version.
  keep(version) {
    this.#saved = Math.max(this.#saved, version);
  }

  get isUnsaved() {
    return this.#saved < this.#version && this.cells.length > 0;
  }

  clear() {
    for (const { url } of this.pictures) if (url) URL.revokeObjectURL(url);
    this.number++;
    Object.assign(this, { pictures: [], signatures: [], ids: { specimen: "", accession: "" } });
    this.#past = [];
    this.#future = [];
    this.#tell("cleared", []);
  }

  // restored: pictures with cells and labels, ids, signatures and blind of a saved session.
  restore({ pictures, ids, signatures, blind }) {
    this.clear();
    Object.assign(this, { ids, signatures, blind });
    this.add(pictures, "all");
    for (const [index, { mode, outcome, reviewed }] of pictures.entries()) {
      const picture = this.pictures[index];
      picture.mode = mode;
      this.settle(picture, outcome);
      for (const [number, label] of reviewed.entries()) picture.cells[number].reviewed = label;
    }
    this.#tell("labelled", this.cells);
    this.keep(this.version);
  }

  #tell(type, cells) {
    this.dispatchEvent(new CustomEvent(type, { detail: cells }));
  }
}

export const specimen = new Specimen();
