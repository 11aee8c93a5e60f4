// Drawn fields, so that a newcomer sees the whole page in one click. `.ci/examples.py` draws them.

import { classify } from "./classify.js";
import { $, Failure, listen } from "./dom.js";
import { specimen } from "./specimen.js";
import { enqueue, supervise } from "./work.js";

const NAMES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((number) => `field-${number}.webp`);
const FLAWED = ["blurred.webp", "dark.webp", "no-cell.webp"]; // what the page says of pictures that it cannot use

async function fetchExample(name) {
  const response = await fetch(`page/examples/${name}`);
  if (!response.ok) throw new Failure("The examples cannot be loaded.", `Status ${response.status}.`);
  return { name, file: new File([await response.blob()], name, { type: "image/webp" }) };
}

const showOffer = () => {
  $("examples").hidden = specimen.pictures.length > 0;
};

export function listenToExamples() {
  listen("show-examples", "click", () =>
    enqueue(() =>
      supervise(async (signal) => {
        const items = await Promise.all([...NAMES, ...FLAWED].map(fetchExample));
        await classify(items, "all", signal);
      }),
    ),
  );
  for (const type of ["added", "pictures", "cleared"]) specimen.addEventListener(type, showOffer);
}
