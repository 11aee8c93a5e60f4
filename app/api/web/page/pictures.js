// Pictures that gave no cell, and pictures with a flaw that their cells share: which, why, and what helps.

import { OF_PICTURE, takeAsSingleCells } from "./classify.js";
import { $, element, plural } from "./dom.js";
import { specimen } from "./specimen.js";
import { advice, inWords } from "./words.js";

// Return the flaws of a picture as reasons for review, if half of its cells have them; none if it can be used.
function flawsOf({ cells, empty }) {
  if (empty) return empty;
  const having = (reason) => cells.filter(({ prediction }) => prediction.review_reasons.includes(reason));
  return OF_PICTURE.filter((reason) => cells.length && 2 * having(reason).length >= cells.length);
}

const sentence = (texts) => {
  const text = texts.join("; ");
  return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
};

function rowOf(picture) {
  const { name, problem, empty, cells, mode } = picture,
    flaws = flawsOf(picture);
  const kind = problem ? "failed" : empty ? "empty" : "flawed";
  const image = picture.url
    ? element("img", { src: picture.url, alt: "", loading: "lazy", decoding: "async", className: "thumb" })
    : element("span", { className: "thumb" });
  image.addEventListener("error", () => image.replaceWith(element("span", { className: "thumb" })), {
    once: true,
  });
  const words = problem ? [`${problem.title}: ${problem.detail}`] : flaws.map((reason) => inWords(reason, mode));
  const text = element(
    "div",
    {},
    element(
      "p",
      {},
      element("strong", { textContent: name }),
      cells.length ? ` (${plural(cells.length, "cell")})` : "",
    ),
    element("p", { className: kind === "failed" ? "failed" : "review" }, sentence(words)),
    element("p", {
      className: "small",
      textContent: advice(flaws, mode)
        .map((text) => `${text}.`)
        .join(" "),
    }),
  );
  if (empty && picture.mode === "all") {
    const button = element("button", { type: "button", textContent: "Take it as one cell" });
    button.setAttribute("aria-label", `Take ${name} as one cell`);
    button.addEventListener("click", () => takeAsSingleCells([picture]));
    text.append(button);
  }
  return element("li", { className: `picture ${kind}-picture` }, image, text);
}

// Only the rows of pictures whose outcome changed are made again.
const rows = new Map(); // picture → { row, state }

function refresh() {
  const shown = specimen.pictures.filter((picture) => picture.problem || flawsOf(picture).length);
  for (const picture of rows.keys()) if (!shown.includes(picture)) rows.delete(picture);
  for (const picture of shown) {
    const state = JSON.stringify([picture.problem, picture.empty, picture.cells.length]);
    if (rows.get(picture)?.state !== state) rows.set(picture, { row: rowOf(picture), state });
  }
  $("flawed-list").replaceChildren(...shown.map((picture) => rows.get(picture).row));
  $("flawed").hidden = !shown.length;
  $("flawed-title").textContent = `${plural(shown.length, "picture")} with a flaw or without a cell`;
}

export function listenToPictures() {
  for (const type of ["pictures", "cleared"]) specimen.addEventListener(type, refresh);
}
