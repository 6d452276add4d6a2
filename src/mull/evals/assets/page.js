// What the scripts of all pages share. Text goes into a page as text nodes only: a model wrote much of it.
"use strict";
const mullPage = (() => {
  /** An element with attributes and children; strings become text nodes. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    node.append(...children.filter((c) => c !== null));
    return node;
  }

  const superscript = (n) => String(n).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(c)] ?? "⁻");
  const percent = d3.format(".1%");

  /** 12,300,000 as "1.23×10⁷", 8200 as "8,200". */
  function power(value) {
    if (Math.abs(value) < 1e6) return d3.format(",.0f")(value);
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${mantissa}×10${superscript(Number(exponent))}`;
  }

  /** Ticks of a log axis that fit `room` labels: powers of ten, and 2 and 5 times them, if there is space. */
  function logTicks([low, high], room) {
    const inside = (steps) => {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
        for (const m of steps) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push({ m, e, value: m * 10 ** e });
      return found;
    };
    const choices = [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]].map(inside);
    const fits = choices.find((ticks) => ticks.length <= room && ticks.length >= 2);
    if (fits) return fits;
    const decades = choices[3];
    return decades.length > room ? decades.filter((_, i) => i % Math.ceil(decades.length / room) === 0) : choices[2];
  }

  /** Calls `redraw` when the page has another width than it was drawn in, once a frame. */
  function onNewWidth(redraw) {
    let width = document.documentElement.clientWidth;
    let waiting = false;
    window.addEventListener("resize", () => {
      if (waiting || document.documentElement.clientWidth === width) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        width = document.documentElement.clientWidth;
        redraw();
      });
    });
  }

  return { el, percent, power, superscript, logTicks, onNewWidth };
})();
