// Making elements. Text becomes text nodes only, so that nothing that came over the bus can become markup.

const SVG = 'http://www.w3.org/2000/svg';

/** Puts attributes, handlers (`onclick`) and children into an element. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(2)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/**
 * A table whose rows are told as a whole. Columns are `{title, number, cell(row)}`; the focus survives a change. What a cell does
 * when it is pressed must follow from what it shows, since equal cells are kept.
 */
export class Table {
  constructor(caption, columns, empty, key) {
    this.columns = columns;
    this.empty = empty;
    this.key = key ?? ((_, index) => index);
    this.body = el('tbody');
    const head = columns.map((column) => el('th', { scope: 'col', class: column.number ? 'number' : null }, column.title));
    this.caption = el('caption', {}, caption);
    // What can be scrolled must be reachable by the keyboard, too.
    this.element = el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
      el('table', {}, this.caption, el('thead', {}, el('tr', {}, head)), this.body));
  }

  show(rows) {
    const focused = document.activeElement?.closest?.('[data-key]');
    const held = focused && this.body.contains(focused) ? focused.dataset.key : null;
    const made = rows.map((row) => el('tr', {},
      this.columns.map((column) => {
        const cell = column.cell(row);
        const attributes = { class: column.number ? 'number' : column.wide ? 'wide' : null };
        return column.header ? el('th', { ...attributes, scope: 'row' }, cell) : el('td', attributes, cell);
      })));
    made.forEach((row, index) => {
      const target = row.querySelector('a, button, input');
      if (target) target.dataset.key = this.key(rows[index], index);
    });
    if (rows.length === 0) made.push(el('tr', {}, el('td', { colspan: this.columns.length, class: 'note' }, this.empty)));
    this.take(made);
    if (held !== null && document.activeElement?.dataset?.key !== held) this.body.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
  }

  /** Only cells that changed are replaced: what a person has marked to copy, or is about to press, stays where it is. */
  take(made) {
    made.forEach((row, index) => {
      const shown = this.body.rows[index];
      if (!shown) this.body.append(row);
      else if (shown.cells.length !== row.cells.length) shown.replaceWith(row);
      else {
        [...row.cells].forEach((cell, at) => {
          if (!shown.cells[at].isEqualNode(cell)) shown.cells[at].replaceWith(cell);
        });
      }
    });
    while (this.body.rows.length > made.length) this.body.rows[made.length].remove();
  }
}

/** A heading, and what belongs beside it. */
export function heading(title, ...beside) {
  return el('div', { class: 'head' }, el('h2', {}, title), beside);
}

/** Pairs of names and values; absent values are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  return el('dl', {}, known.map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

/** A place for what went wrong; `show(null)` empties it. It is told to screen readers when it changes. */
export class Problem {
  constructor() {
    this.element = el('div', { role: 'alert' });
    this.said = null;
  }

  show(error) {
    const said = error ? [error.message, error.hint].filter(Boolean).join(' — ') : null;
    if (said === this.said) return;
    this.said = said;
    this.element.replaceChildren(...(said ? [el('p', { class: 'problem' }, said)] : []));
  }
}
