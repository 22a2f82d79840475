/* Data sets: accuracies of different images are shown side by side, and never averaged. */

/** The finished runs by the images and classes that they were evaluated on, each with a name of its own. */
function setsOf(page) {
  const blocks = [...Map.groupBy(done(page), (run) => run.evaluation_key ?? run.dataset).values()];
  const names = [(run) => run.dataset, (run) => `${run.dataset}, ${run.split}`];
  names.push((run) => `${run.dataset}, ${run.split}, ${plain(run.n)} images`);
  return blocks.map((runs, at) => {
    const alone = names.find((name) => blocks.every((other) => other === runs || name(other[0]) !== name(runs[0])));
    return { name: alone ? alone(runs[0]) : `${names[2](runs[0])} (${at + 1})`, runs };
  });
}

/** Whether a run's method uses a setting: of the others it has a value that changed nothing. */
const usesAxis = (run, axis) => axis.key in run.axes || axis.key === "dataset" || axis.key === "method";
