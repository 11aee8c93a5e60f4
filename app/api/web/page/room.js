// The bars that stick to the edges of the window cover what is below them: page.css keeps what is scrolled to, or
// gets the focus, between them.

import { $ } from "./dom.js";

export function keepRoom() {
  const { style } = document.querySelector("main"),
    header = document.querySelector("header");
  const sizes = new ResizeObserver(() => {
    style.setProperty("--above", `${header.offsetHeight}px`);
    style.setProperty("--below", `${$("bench").offsetHeight}px`);
  });
  for (const bar of [header, $("bench")]) sizes.observe(bar);
}
