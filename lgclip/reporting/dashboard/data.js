"use strict";

/** The page's data as lgclip/reporting/dashboard/schema.py tells it; lgclip/reporting/dashboard/page.py has packed it. */
function readData() {
  const { prompts, page } = JSON.parse(document.getElementById("data").textContent);
  for (const run of page.runs) {
    const { n, right, taken_for, times } = run.classes;
    run.classes = n.map((count, c) => ({ n: count, right: right[c], taken_for: taken_for[c], times: times[c] }));
    run.gallery = run.gallery.map((drawn) => drawn.map(([at, images]) => ({ prompt: prompts[at], images })));
  }
  return page;
}
