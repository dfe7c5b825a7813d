// Dead letters: listed, looked at, sent back to work.

import { get, post } from './api.js';
import { Problem, Table, el, facts, heading } from './dom.js';
import { poll } from './live.js';
import { decoded, number, time } from './text.js';

const LIMIT = 50;

export function show(main, { signal, query }) {
  const problem = new Problem();
  const stream = el('input', { name: 'stream', value: query.get('stream') ?? '', autocomplete: 'off' });
  const consumer = el('input', { name: 'consumer', value: query.get('consumer') ?? '', autocomplete: 'off' });
  const note = el('p', { class: 'note said' });
  const outcome = el('div', { role: 'status' });
  const detail = el('section', { class: 'detail', 'aria-label': 'The dead letter', tabindex: -1 }, el('p', { class: 'note' }, 'Choose a dead letter to see it.'));
  const all = el('button', { type: 'button', disabled: true, onclick: () => redriveShown() }, 'Redrive all that match…');
  const next = el('button', { type: 'button', hidden: true, onclick: () => turn(letters.next) }, 'Next page');
  const first = el('button', { type: 'button', hidden: true, onclick: () => turn(null) }, 'First page');
  let letters = { letters: [], next: null };
  let from = null;

  const table = new Table('Dead letters, oldest first', [
    { title: 'Offset', header: true, cell: (row) => el('button', { type: 'button', 'aria-label': `Show dead letter ${row.offset}`, onclick: () => look(row.offset) }, row.offset) },
    { title: 'Time', number: true, cell: (row) => time(row.time) },
    { title: 'Reason', cell: (row) => el('span', { class: 'word bad' }, row.reason) },
    { title: 'Attempts', number: true, cell: (row) => number(row.attempts) },
    { title: 'Stream', cell: (row) => row.stream },
    { title: 'Consumer', cell: (row) => row.consumer },
    { title: 'Subject', wide: true, cell: (row) => row.originalSubject },
  ], 'No dead letters, which is as it should be.', (row) => row.offset);

  const filter = el('form', { class: 'filters', onsubmit: (event) => { event.preventDefault(); turn(null); } },
    el('label', {}, 'Stream', stream), el('label', {}, 'Consumer', consumer),
    el('button', { type: 'submit' }, 'Filter'), all);
  main.append(heading('Dead letters'), problem.element, filter, outcome, note,
    el('div', { class: 'split' }, el('div', {}, table.element, el('p', { class: 'more' }, first, ' ', next)), detail));

  const wanted = () => ({ stream: stream.value.trim() || undefined, consumer: consumer.value.trim() || undefined });

  async function refresh() {
    letters = await get('dead-letters', { ...wanted(), from, limit: LIMIT }, signal);
    table.show(letters.letters);
    note.textContent = letters.stream ? `${number(letters.total)} in all, in the stream ${letters.stream}.` : 'There is no stream of dead letters yet: no consumer has run.';
    all.disabled = letters.letters.length === 0;
    next.hidden = letters.end;
    first.hidden = from === null;
  }

  function turn(to) {
    from = to;
    return refresh().catch((error) => problem.show(error));
  }

  async function look(offset) {
    try {
      const letter = await get(`dead-letters/${encodeURIComponent(offset)}`, {}, signal);
      detail.replaceChildren(...details(letter, () => redriveOne(letter)));
      detail.focus({ preventScroll: true });
      detail.scrollIntoView({ block: 'nearest' });
    } catch (error) {
      problem.show(error);
    }
  }

  async function redriveOne(letter) {
    const question = `Send dead letter ${letter.offset} back to ${letter.originalSubject}? Every consumer of stream ${letter.stream} whose filter matches sees it again.`;
    if (await confirmed(question)) await redrive({ offsets: [letter.offset] });
  }

  async function redriveShown() {
    const { stream: of, consumer: by } = wanted();
    const which = [of && `of stream ${of}`, by && `of consumer ${by}`].filter(Boolean).join(' ') || 'there are';
    const until = letters.letters.at(-1)?.offset;
    // Pages that nobody has seen go only where all pages were asked for.
    const bound = letters.end ? `up to ${until}` : 'on this page and those before it';
    const question = `Send all dead letters that ${which === 'there are' ? 'there are' : `are ${which}`}, ${bound}, back to their streams?`;
    if (await confirmed(question)) await redrive({ stream: of, consumer: by, all: !of && !by, until });
  }

  async function redrive(request) {
    outcome.replaceChildren(el('p', { class: 'note' }, 'Sending back…'));
    try {
      const answer = await post('dead-letters/redrive', request, signal);
      outcome.replaceChildren(told(answer));
      detail.replaceChildren(el('p', { class: 'note' }, 'Choose a dead letter to see it.'));
      await refresh();
    } catch (error) {
      // It may have been done: what has become of them is what the list says.
      outcome.replaceChildren(el('p', { class: 'outcome failed' }, `${error.message}. Some may have been sent back; the list says which are left.`));
    }
  }

  poll(refresh, signal, problem);
}

function told({ redriven, failed, more }) {
  const lines = [el('p', {}, `${number(redriven.length)} sent back to work${failed.length ? `, ${number(failed.length)} not` : ''}.`)];
  if (failed.length) lines.push(el('ul', {}, failed.slice(0, 20).map((one) => el('li', {}, `${one.deadLetter}: ${one.error}`))));
  if (more) lines.push(el('p', {}, 'There are more; send them back in another go.'));
  return el('div', { class: failed.length ? 'outcome failed' : 'outcome' }, lines);
}

function details(letter, redrive) {
  const { headers = [], payloadBase64 } = letter.message;
  return [
    el('div', { class: 'head' }, el('h3', {}, `Dead letter ${letter.offset}`), el('button', { type: 'button', class: 'main', onclick: redrive }, 'Redrive…')),
    facts([
      ['reason', letter.reason], ['attempts', number(letter.attempts)], ['written', time(letter.time)],
      ['subject', letter.originalSubject], ['stream', letter.stream], ['consumer', letter.consumer], ['offset there', letter.originalOffset],
      ...headers.filter(([name]) => !name.startsWith('Trunkline-Dead-')).map(([name, value]) => [`header ${name}`, value]),
    ]),
    el('h3', {}, 'Payload'),
    el('pre', { class: 'payload', tabindex: 0, 'aria-label': 'Payload' }, decoded(payloadBase64)),
  ];
}

/** Asks before something is done. `Escape` is no. */
function confirmed(question) {
  return new Promise((resolve) => {
    const dialog = el('dialog', { 'aria-labelledby': 'question' },
      el('p', { id: 'question' }, question),
      el('div', { class: 'actions' },
        el('button', { type: 'button', onclick: () => dialog.close('no') }, 'Cancel'),
        el('button', { type: 'button', class: 'main', onclick: () => dialog.close('yes') }, 'Redrive')));
    dialog.addEventListener('close', () => {
      resolve(dialog.returnValue === 'yes');
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
