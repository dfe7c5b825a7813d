// The list of conversations.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { poll } from './live.js';
import { bytes, duration, number, shortened, time, tone } from './text.js';

const LIMIT = 50;
const FILTERS = [['persona', 'Persona'], ['tool', 'Tool'], ['skill', 'Skill'], ['type', 'Type']];

export function show(main, { signal, query }) {
  const problem = new Problem();
  const note = el('p', { class: 'note said' });
  const inputs = FILTERS.map(([name]) => el('input', { name, value: query.get(name) ?? '', autocomplete: 'off' }));
  const state = el('select', { name: 'state' }, ['', 'open', 'quiet', 'failed'].map((value) => el('option', { value, selected: query.get('state') === value }, value || 'any')));
  const newer = el('button', { type: 'button', hidden: true, onclick: () => turn(-LIMIT) }, 'Newer');
  const older = el('button', { type: 'button', hidden: true, onclick: () => turn(LIMIT) }, 'Older');
  let offset = 0;
  const names = (list) => shortened(list.join(', '), 60) || '–';
  const trouble = (count) => el('span', { class: count > 0 ? 'bad word' : null }, number(count));
  const table = new Table('Conversations, the one seen last first', [
    { title: 'Conversation', header: true, wide: true, cell: (row) => el('a', { href: `#/conversation/${encodeURIComponent(row.id)}` }, shortened(row.id, 40)) },
    { title: 'State', cell: (row) => el('span', { class: `word ${tone(row.state)}` }, row.state) },
    { title: 'Last seen', number: true, cell: (row) => time(row.last) },
    { title: 'Took', number: true, cell: (row) => duration(Date.parse(row.last) - Date.parse(row.first)) },
    { title: 'Messages', number: true, cell: (row) => number(row.messages) },
    { title: 'Size', number: true, cell: (row) => bytes(row.bytes) },
    { title: 'Participants', wide: true, cell: (row) => names(row.participants) },
    { title: 'Tools', wide: true, cell: (row) => names(row.tools) },
    { title: 'Retries', number: true, cell: (row) => number(row.retries) },
    { title: 'Dead letters', number: true, cell: (row) => trouble(row.deadLetters) },
    { title: 'Gaps', number: true, cell: (row) => trouble(row.gaps) },
    { title: 'Errors', number: true, cell: (row) => trouble(row.errors) },
  ], 'No conversation was seen so far.', (row) => row.id);
  const filter = el('form', { class: 'filters', onsubmit: (event) => { event.preventDefault(); offset = 0; refresh().catch((error) => problem.show(error)); } },
    FILTERS.map(([, title], index) => el('label', {}, title, inputs[index])),
    el('label', {}, 'State', state),
    el('button', { type: 'submit' }, 'Filter'));
  main.append(heading('Conversations'), problem.element, filter, note, table.element, el('p', { class: 'more' }, newer, ' ', older));

  async function refresh() {
    const wanted = Object.fromEntries(FILTERS.map(([name], index) => [name, inputs[index].value.trim()]));
    const list = await get('conversations', { ...wanted, state: state.value, limit: LIMIT, offset: offset || undefined }, signal);
    table.show(list.conversations);
    note.textContent = [
      list.enabled ? '' : 'Nothing is recorded: observe.enabled is false.',
      `${number(list.total)} in the record.`,
      list.notRecorded ? `${number(list.notRecorded)} messages were not recorded, because there were more than observe.rate_max.` : '',
    ].filter(Boolean).join(' ');
    newer.hidden = offset === 0;
    older.hidden = list.conversations.length < LIMIT;
  }

  function turn(by) {
    offset = Math.max(0, offset + by);
    refresh().catch((error) => problem.show(error));
  }

  poll(refresh, signal, problem);
}
