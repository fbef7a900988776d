// Elements, numbers and small pictures. Text goes in as text: nothing that a study is called becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// As `dialin status` prints it: four digits after the point, or four that count.
export function number(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  return value === 0 || (size >= 0.001 && size < 1000) ? value.toFixed(4) : value.toPrecision(4);
}

export function counted(count, one, several = `${one}s`) {
  return `${count} ${count === 1 ? one : several}`;
}

export function ago(seconds) {
  for (const [size, unit] of [[86400, "days"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * size || (seconds >= size && unit !== "days")) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.max(0, Math.round(seconds))} s ago`;
}

// A curve of (epoch, value) over the length of a full trial, so that one sees how much is still to come.
export function curve(points, epochs, label) {
  const picture = drawn("svg", { class: "curve", viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img" });
  picture.append(drawn("title", {}, label), drawn("line", { x1: 0, y1: 39.5, x2: 100, y2: 39.5 }));
  if (points.length === 0) return picture;
  const values = points.map(([, value]) => value);
  const low = Math.min(...values), high = Math.max(...values);
  const last = Math.max(epochs, points[points.length - 1][0], 1);
  const x = (epoch) => (100 * epoch) / last;
  const y = (value) => (high > low ? 37 - (34 * (value - low)) / (high - low) : 20);
  const at = points.map(([epoch, value]) => `${x(epoch).toFixed(2)} ${y(value).toFixed(2)}`);
  // A single point is drawn as a line of no length, which its round ends make a dot.
  picture.append(drawn("path", { d: `M${at.join("L")}${at.length === 1 ? `L${at[0]}` : ""}` }));
  return picture;
}

// A bar an hour, the present one last.
export function bars(counts, label) {
  const picture = drawn("svg", { class: "pace", viewBox: "0 0 240 100", preserveAspectRatio: "none", role: "img" });
  picture.append(drawn("title", {}, label), drawn("line", { x1: 0, y1: 99.5, x2: 240, y2: 99.5 }));
  const most = Math.max(...counts, 1), width = 240 / counts.length;
  counts.forEach((count, hour) => {
    const height = (96 * count) / most;
    const bar = drawn("rect", { x: hour * width + 1, y: 99 - height, width: width - 2, height });
    const hours = counts.length - hour;
    bar.append(drawn("title", {}, `${counted(count, "trial")}, ${hours === 1 ? "the last hour" : `${hours} hours ago`}`));
    picture.append(bar);
  });
  return picture;
}
