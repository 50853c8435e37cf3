const items = data.explorer && data.explorer.items;
const encoders = data.explorer ? data.explorer.encoders : {};
const MOST_FOUND = 30;
const state = { item: 0, active: -1, found: [] };
const folded = items ? items.text.map((text, place) => (text + ' ' + items.id[place]).toLowerCase()) : [];
const isNew = (place) => items.training_users[place] === 0;
const count = (number, what) => `${number.toLocaleString('en')} ${what}${number === 1 ? '' : 's'}`;

/** Places of the items with every word asked for, those that begin with the first of them in front. */
function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let place = 0; place < folded.length; place += 1) {
    if (words.every((word) => folded[place].includes(word))) found.push(place);
  }
  const rank = (place) => (items.id[place].toLowerCase() === query.trim().toLowerCase() ? 2 : folded[place].startsWith(words[0] || '') ? 1 : 0);
  return found.sort((one, other) => rank(other) - rank(one) || items.users[other] - items.users[one]).slice(0, MOST_FOUND);
}

function showFound(places) {
  const list = element('found');
  state.found = places;
  state.active = -1;
  list.replaceChildren(...places.map((place, row) => {
    const entry = written('li', title(items.text[place]));
    entry.id = `found-${row}`;
    entry.setAttribute('role', 'option');
    entry.setAttribute('aria-selected', 'false');
    if (isNew(place)) entry.append(' ', made('span', 'new', 'badge new'));
    entry.addEventListener('mousedown', (event) => { event.preventDefault(); pick(place); });
    return entry;
  }));
  if (!places.length) list.append(made('li', 'No item here has these words.', 'none'));
  list.hidden = false;
  element('search').setAttribute('aria-expanded', 'true');
}

function hideFound() {
  element('found').hidden = true;
  const input = element('search');
  input.setAttribute('aria-expanded', 'false');
  input.removeAttribute('aria-activedescendant');
}

function activate(row) {
  const entries = [...element('found').querySelectorAll('[role=option]')];
  if (!entries.length) return;
  state.active = (row + entries.length) % entries.length;
  entries.forEach((entry, place) => entry.setAttribute('aria-selected', String(place === state.active)));
  entries[state.active].scrollIntoView({ block: 'nearest' });
  element('search').setAttribute('aria-activedescendant', entries[state.active].id);
}

function pick(place) {
  hideFound();
  element('search').value = '';
  selectItem(place);
}

function onKey(event) {
  const closed = element('found').hidden;
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    event.preventDefault();
    if (closed) showFound(search(event.target.value));
    activate(event.key === 'ArrowDown' ? state.active + 1 : state.active < 0 ? -1 : state.active - 1);
  } else if (event.key === 'Enter' && !closed && state.found.length) {
    event.preventDefault();
    pick(state.found[Math.max(0, state.active)]);
  } else if (event.key === 'Escape') {
    hideFound();
  }
}

/** One line of a list: the item, what is known of the pair, and a way to it. */
function entry(place, ...figures) {
  const node = made('li');
  const button = made('button');
  button.type = 'button';
  button.dataset.item = place;
  button.title = items.text[place];
  button.append(written('span', title(items.text[place]), 'text'));
  const line = made('span', undefined, 'figures');
  figures.forEach((figure, at) => line.append(at ? ' · ' : '', figure));
  if (isNew(place)) line.append(' ', made('span', 'new', 'badge new'));
  button.append(line);
  button.addEventListener('click', () => selectItem(place));
  node.append(button);
  return node;
}

function showNeighbours(name, place) {
  const list = element(`list-${name}`);
  const summary = element(`summary-${name}`);
  const encoder = encoders[name];
  if (!encoder) {
    list.replaceChildren();
    summary.textContent = 'Its embeddings were not kept.';
    return;
  }
  const common = encoder.common[place];
  const mean = common.reduce((sum, users) => sum + users, 0) / common.length;
  summary.textContent = `${mean.toFixed(mean < 10 ? 1 : 0)} shared users on average.`;
  list.replaceChildren(...encoder.places[place].map((other, at) => entry(
    other, `cos ${encoder.cosines[place][at].toFixed(2)}`,
    common[at] ? made('b', `${common[at].toLocaleString('en')} shared`) : 'none shared')));
}

function describe(place) {
  const heading = made('p');
  heading.append(written('strong', title(items.text[place], 200)));
  if (isNew(place)) heading.append(' ', made('span', 'new', 'badge new'));
  const users = items.users[place];
  const seen = items.training_users[place];
  const said = isNew(place)
    ? `New item (${items.split[place]}): the encoder saw no interaction of it; ${count(users, 'user')} have it.`
    : `Seen in training: ${count(seen, 'user')}${seen === users ? '' : ` of the ${users.toLocaleString('en')} who have it`}.`;
  const facts = made('p', `${said} Item ${items.id[place]}, ${items.domain[place]}.`, 'note');
  const nodes = [heading, facts];
  if (title(items.text[place], 200) !== items.text[place]) nodes.splice(1, 0, written('p', items.text[place]));
  element('selected').replaceChildren(...nodes);
}

function selectItem(place) {
  state.item = place;
  describe(place);
  for (const name of ['original', 'trained']) showNeighbours(name, place);
  const together = items.together[place].map((other, at) => entry(
    other, made('b', `${items.together_users[place][at].toLocaleString('en')} shared`), `of ${count(items.users[other], 'user')}`));
  element('list-together').replaceChildren(...(together.length ? together : [made('li', 'No user has it with another item that is here.', 'note')]));
  markSelected();
}

/** The first item shown: the most interacted-with new one, or simply the most interacted-with. */
function firstItem() {
  const places = items.users.map((_, place) => place).sort((one, other) => items.users[other] - items.users[one]);
  return places.find((place) => isNew(place) && items.users[place] > 0) ?? places[0];
}

function startExplorer() {
  const input = element('search');
  input.addEventListener('input', () => (input.value.trim() ? showFound(search(input.value)) : hideFound()));
  input.addEventListener('keydown', onKey);
  input.addEventListener('blur', hideFound);
  element('another').addEventListener('click', () => selectItem(Math.floor(Math.random() * items.id.length)));
}
