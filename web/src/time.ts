// Durations for people.

/** Returns a duration in its two largest units. */
export function duration(milliseconds: number): string {
  const seconds = Math.floor(milliseconds / 1000);
  const units: [number, string][] = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ];
  const first = units.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  return units.slice(first, first + 2).map(([count, unit]) => `${count} ${unit}`).join(" ");
}
