// The page at /: send images, review the cells, sign and save the differential. It calls the same HTTP API as any
// other client. This module joins the others.

import { listenToRetry } from "./classify.js";
import { listenToDifferential, updateDifferential } from "./differential.js";
import { $, listen, setStatus } from "./dom.js";
import { isEvaluationUnsaved, listenToEvaluation } from "./evaluation.js";
import { listenToExamples } from "./examples.js";
import { listenToExports } from "./exports.js";
import { listenToGalleries } from "./galleries.js";
import { listenToFiles } from "./intake.js";
import { confirm, listenToLabelling } from "./labelling.js";
import { describeModel } from "./model.js";
import { listenToPictures } from "./pictures.js";
import { keepRoom } from "./room.js";
import { watchReadiness } from "./service.js";
import { forgetKept, listenToSessions } from "./sessions.js";
import { listenToPrint } from "./sheet.js";
import { listenToSigning } from "./signing.js";
import { specimen } from "./specimen.js";
import { listenToViewer, openViewer } from "./viewer.js";
import { cancel } from "./work.js";

const LOSS = "The results are not saved. Clear them all the same?";

// Forget the specimen: nothing of it may be reported under the next one's identifiers, nor under its own.
async function clear() {
  if (specimen.isUnsaved && !window.confirm(LOSS)) return;
  specimen.clear();
  for (const id of ["specimen-id", "accession-id"]) $(id).value = "";
  $("problems").replaceChildren();
  $("retry").hidden = true;
  await forgetKept();
  setStatus("Cleared.");
  $("files").focus();
}

function listenToIdentifiers() {
  for (const [id, name] of Object.entries({ "specimen-id": "specimen", "accession-id": "accession" })) {
    $(id).addEventListener("input", () => {
      specimen.ids[name] = $(id).value.trim();
      specimen.change();
      document.dispatchEvent(new Event("identified"));
    });
    listen(id, "change", updateDifferential);
  }
}

keepRoom();
listenToFiles();
listenToRetry();
listenToExamples();
listenToPictures();
listenToDifferential();
listenToGalleries({ confirm, open: openViewer });
listenToLabelling(openViewer);
listenToViewer();
listenToIdentifiers();
listenToSigning();
listenToExports();
listenToPrint();
listenToSessions();
listenToEvaluation();
listen("cancel", "click", cancel);
listen("clear", "click", clear);
window.addEventListener("beforeunload", (event) => {
  if (specimen.isUnsaved || isEvaluationUnsaved()) event.preventDefault();
});
watchReadiness(describeModel);
