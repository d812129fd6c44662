/** Numbers and tokens as people read them. */

const integers = new Intl.NumberFormat("en-US");

/** 12,345 */
export function count(value: number): string {
  return integers.format(Math.round(value));
}

/** A number with `digits` significant digits, without exponents in the range people meet here. */
export function number(value: number | null, digits = 3): string {
  if (value === null || !Number.isFinite(value)) return "—";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return minus(value.toExponential(Math.max(0, digits - 2)));
  const wanted = digits - 1 - Math.floor(Math.log10(size));
  const decimals = Math.max(0, Math.min(size >= 0.01 ? digits : 6, wanted));
  const fixed = value.toFixed(decimals);
  return minus(size >= 1000 ? integers.format(Number(fixed)) : fixed);
}

/** The shortest writing of a number for an axis: 2.0 -> 2, 0.50 -> 0.5. */
export function axisNumber(value: number): string {
  return minus(String(Number(value.toPrecision(3))));
}

/** A fixed number of decimals, with a true minus sign. */
export function fixed(value: number | null, decimals = 2): string {
  if (value === null || !Number.isFinite(value)) return "—";
  return minus(value.toFixed(decimals));
}

function minus(text: string): string {
  return text.replace("-", "−");
}

/** A share as per cent: 0.00213 -> 0.21 %. */
export function percent(share: number): string {
  if (share === 0 || share === 1) return share ? "100 %" : "0 %";
  const value = share * 100;
  if (value < 0.001) return "< 0.001 %";
  const decimals = value >= 10 ? 1 : value >= 0.1 ? 2 : 3;
  return `${value.toFixed(decimals)} %`;
}

/** One way to write all numbers of a row, so fine that half the width of the interval shows. */
export function rowNumbers(value: number | null, low: number | null, high: number | null): (value: number | null) => string {
  if (value === null || value === 0) return number;
  const digits = (size: number, significant: number) => significant - 1 - Math.floor(Math.log10(size));
  const half = low !== null && high !== null ? (high - low) / 2 : 0;
  const most = Math.abs(value) >= 0.01 ? 3 : 6;
  const decimals = Math.max(0, Math.min(most, Math.max(digits(Math.abs(value), 3), half > 0 ? digits(half, 1) : 0)));
  return (other) => {
    if (other === null || !Number.isFinite(other)) return "—";
    if (Math.abs(other) < 1e-9) return "0"; // What is left of a zero after rounding.
    if (Number(other.toFixed(decimals)) === 0) return number(other, 2);
    return minus(Math.abs(other) >= 1000 ? integers.format(Number(other.toFixed(decimals))) : other.toFixed(decimals));
  };
}

/** 0.00213 -> "1 in 469". */
export function oneIn(share: number): string {
  return share > 0 ? `1 in ${count(1 / share)} tokens` : "no token";
}

const SUPERSCRIPTS: Record<string, string> = {
  "-": "⁻", "0": "⁰", "1": "¹", "2": "²", "3": "³", "4": "⁴", "5": "⁵", "6": "⁶", "7": "⁷", "8": "⁸", "9": "⁹",
};

/** A power of ten from its exponent: -3 -> 10⁻³. */
export function powerOfTen(exponent: number): string {
  const text = String(Math.round(exponent));
  return "10" + [...text].map((char) => SUPERSCRIPTS[char] ?? char).join("");
}

/** The name of an example group for people: "quantile 5 of 5" is the strongest fifth of all firings, 80–100 %. */
export function groupName(name: string): string {
  if (name === "top") return "Strongest";
  const part = /^(quantile|interval) (\d+) of (\d+)$/.exec(name);
  if (!part) return name;
  const [number, of] = [Number(part[2]), Number(part[3])];
  if (part[1] === "interval") return `Band ${number}`;
  const edge = (at: number) => Math.round((100 * at) / of);
  return `${edge(number - 1)}–${edge(number)} %`;
}
