// A small chart of the last minutes: a curve, and beside it its latest value as text.

import { el, svg } from './dom.js';

/** Points that are kept; older ones are forgotten. */
const POINTS = 60;
const [WIDTH, HEIGHT] = [240, 60];

export class Chart {
  /** `show(value)` is how values are written. */
  constructor(title, show) {
    this.show = show;
    this.points = [];
    this.figure = el('p', { class: 'figure' }, '–');
    this.area = svg('path', { class: 'area' });
    this.curve = svg('path', { class: 'curve' });
    this.peak = el('p', { class: 'note' }, ' ');
    this.drawing = svg('svg', { class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': title }, this.area, this.curve);
    this.title = title;
    this.heading = el('h3', {}, title);
    this.element = el('section', { class: 'card' }, this.heading, this.figure, this.drawing, this.peak);
  }

  /** What the chart shows may depend on what is known. */
  rename(title) {
    if (title === this.title) return;
    this.title = title;
    this.heading.textContent = title;
    this.draw();
  }

  add(value) {
    this.points.push(value);
    if (this.points.length > POINTS) this.points.shift();
    this.draw();
  }

  draw() {
    const known = this.points.filter((point) => point !== null);
    const top = Math.max(...known, 0) || 1;
    const x = (index) => ((POINTS - this.points.length + index) / (POINTS - 1)) * WIDTH;
    const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 6);
    let [curve, drawing] = ['', false];
    this.points.forEach((point, index) => {
      if (point === null) {
        drawing = false;
        return;
      }
      curve += `${drawing ? 'L' : 'M'}${x(index).toFixed(1)} ${y(point).toFixed(1)}`;
      drawing = true;
    });
    this.curve.setAttribute('d', curve);
    // What was not measured before the beginning leaves no hole; what was not measured later does.
    const begun = this.points.findIndex((point) => point !== null);
    const gap = this.points.includes(null, Math.max(begun, 0));
    const first = x(begun).toFixed(1);
    this.area.setAttribute('d', curve && !gap ? `${curve}L${WIDTH} ${HEIGHT}L${first} ${HEIGHT}Z` : '');
    const last = this.points.at(-1);
    this.figure.textContent = last === null || last === undefined ? '–' : this.show(last);
    const peak = known.length ? `at most ${this.show(Math.max(...known))} in this window` : 'nothing measured so far';
    this.peak.textContent = peak;
    this.drawing.setAttribute('aria-label', `${this.title}: now ${this.figure.textContent}, ${peak}`);
  }
}
