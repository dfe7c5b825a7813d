// Subjects: who publishes, answers and listens.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { Rates, poll } from './live.js';
import { number, rate, time } from './text.js';

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note' });
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
    { title: 'Queue group', cell: (row) => row.queue ?? '–' },
    { title: 'Client', wide: true, cell: (row) => row.client },
    { title: 'Count', number: true, cell: (row) => number(row.count) },
    { title: 'Rate', number: true, cell: (row) => rate(current.get(key(row)) ?? 0) },
    { title: 'Delivered', number: true, cell: (row) => number(row.delivered) },
  ], 'No client of the server subscribes to anything. Components inside the process are seen above, by what they are given.');
  main.append(heading('Subjects'), problem.element, note, subjects.element, el('h3', {}, 'Subscriptions'), subscriptions.element);
  poll(async () => {
    const answer = await get('subjects', {}, signal);
    const omitted = answer.subjectsOmitted + answer.subscriptionsOmitted;
    note.textContent = [
      answer.recorded ? '' : 'Messages are not recorded here (observe.enabled), so only subscriptions are known.',
      omitted ? `${number(omitted)} more are left out.` : '',
    ].filter(Boolean).join(' ');
    current = rates.of(answer.subscriptions, key, (row) => row.delivered);
    subjects.show(answer.subjects);
    subscriptions.show(answer.subscriptions);
  }, signal, problem);
}
