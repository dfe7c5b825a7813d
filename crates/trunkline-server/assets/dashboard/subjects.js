// Subjects: who publishes, answers and listens.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { Rates, poll } from './live.js';
import { count, number, rate, shortened, time } from './text.js';

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note said', role: 'status' });
  const find = el('input', { name: 'find', type: 'search', autocomplete: 'off', oninput: () => draw() });
  let answer = null;
  const names = (list) => list.join(', ') || '–';
  const subjects = new Table('Subjects that messages were seen on', [
    { title: 'Subject', header: true, wide: true, cell: (row) => row.subject },
    { title: 'Publish', wide: true, cell: (row) => names(row.publishers) },
    { title: 'Answer', wide: true, cell: (row) => names(row.responders) },
    { title: 'Listen', wide: true, cell: (row) => names(row.listeners) },
    { title: 'Rate', number: true, cell: (row) => rate(row.rate) },
    { title: 'Messages', number: true, cell: (row) => number(row.messages) },
    { title: 'Last', number: true, cell: (row) => time(row.last) },
  ], 'No messages were seen so far.');
  const rates = new Rates();
  const key = (row) => JSON.stringify([row.pattern, row.queue, row.client]);
  let current = new Map();
  const subscriptions = new Table('Subscriptions of clients of the server', [
    { title: 'Pattern', header: true, wide: true, cell: (row) => row.pattern },
    { title: 'Queue group', cell: (row) => shortened(row.queue ?? '–', 40) },
    { title: 'Client', wide: true, cell: (row) => row.client },
    { title: 'Count', number: true, cell: (row) => number(row.count) },
    { title: 'Rate', number: true, cell: (row) => rate(current.get(key(row)) ?? 0) },
    { title: 'Delivered', number: true, cell: (row) => number(row.delivered) },
  ], 'No client of the server subscribes to anything. Components inside the process are seen above, by what they are given.');
  const filter = el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() }, el('label', {}, 'Subject, pattern or name has', find));
  main.append(heading('Subjects'), problem.element, filter, note, subjects.element, el('h3', {}, 'Subscriptions'), subscriptions.element);

  function draw() {
    if (!answer) return;
    const wanted = find.value.trim().toLowerCase();
    const has = (...texts) => texts.some((text) => text?.toLowerCase().includes(wanted));
    const found = answer.subjects.filter((row) => has(row.subject, ...row.publishers, ...row.responders, ...row.listeners));
    const listening = answer.subscriptions.filter((row) => has(row.pattern, row.queue, row.client));
    const omitted = answer.subjectsOmitted + answer.subscriptionsOmitted;
    note.textContent = [
      `${count(found.length, 'subject', 'subjects')}, ${count(listening.length, 'line', 'lines')} of subscriptions.`,
      answer.recorded ? '' : 'Messages are not recorded here (observe.enabled), so only subscriptions are known.',
      omitted ? `${number(omitted)} more are left out.` : '',
    ].filter(Boolean).join(' ');
    subjects.show(found);
    subscriptions.show(listening);
  }

  poll(async () => {
    answer = await get('subjects', {}, signal);
    current = rates.of(answer.subscriptions, key, (row) => row.delivered);
    draw();
  }, signal, problem);
}
