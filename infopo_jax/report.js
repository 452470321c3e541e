'use strict';
document.documentElement.classList.add('js');

// Values under the pointer. data-points: rows of [x in viewBox units, text, text, ...].
for (const plot of document.querySelectorAll('.plot[data-points]')) {
  const rows = JSON.parse(plot.dataset.points);
  const width = plot.querySelector('svg').viewBox.baseVal.width;
  const rule = plot.appendChild(document.createElement('div'));
  const tip = plot.appendChild(document.createElement('div'));
  rule.className = 'rule';
  tip.className = 'tip';
  rule.hidden = tip.hidden = true;
  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const row = rows.reduce((best, one) => (Math.abs(one[0] - x) < Math.abs(best[0] - x) ? one : best));
    rule.hidden = tip.hidden = false;
    rule.style.left = `${(row[0] / width) * 100}%`;
    tip.textContent = row.slice(1).join('\n');
    const right = row[0] > width * 0.6;
    tip.style.left = right ? '' : `calc(${(row[0] / width) * 100}% + 8px)`;
    tip.style.right = right ? `calc(${100 - (row[0] / width) * 100}% + 8px)` : '';
  });
  plot.addEventListener('pointerleave', () => {
    rule.hidden = tip.hidden = true;
  });
}

// One sample at a time; arrow keys move when the list has the focus.
const buttons = [...document.querySelectorAll('[data-sample]')];
function choose(button) {
  for (const one of buttons) {
    const chosen = one === button;
    one.setAttribute('aria-pressed', String(chosen));
    document.getElementById(`sample-${one.dataset.sample}`).classList.toggle('chosen', chosen);
  }
}
for (const [place, button] of buttons.entries()) {
  button.addEventListener('click', () => choose(button));
  button.addEventListener('keydown', (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = move && buttons[place + move];
    if (next) {
      event.preventDefault();
      next.focus();
      choose(next);
    }
  });
}
const list = document.querySelector('.inspector nav');
const pressed = document.querySelector('[aria-pressed="true"]');
if (list && pressed) list.scrollTop = pressed.offsetTop - list.clientHeight / 2;
