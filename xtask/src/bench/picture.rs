//! Pictures of results: curves, with both axes logarithmic and one line for each contender, and
//! bars in groups.

use std::fmt::Write;

/// What a benchmark shows beside its rows.
pub(crate) enum Picture {
    Curves(Curves),
    Bars(Bars),
}

impl Picture {
    /// As SVG.
    pub(crate) fn svg(&self) -> String {
        match self {
            Self::Curves(curves) => curves.svg(),
            Self::Bars(bars) => bars.svg(),
        }
    }

    /// As a table, for what no row tells.
    pub(crate) fn table(&self, shown: impl Fn(f64) -> String) -> Option<Vec<Vec<String>>> {
        match self {
            Self::Curves(curves) => Some(curves.table(shown)),
            Self::Bars(_) => None,
        }
    }
}

/// Values of several contenders in several situations, all from zero up.
pub(crate) struct Bars {
    pub(crate) title: String,
    /// The unit of the values.
    pub(crate) unit: &'static str,
    /// The situations.
    pub(crate) groups: Vec<String>,
    /// Each with a value for each situation.
    pub(crate) lines: Vec<(String, Vec<f64>)>,
}

impl Bars {
    fn svg(&self) -> String {
        let [left, right, above, below] = MARGINS;
        let (across, up) = (WIDTH - left - right, HEIGHT - above - below);
        let values = self.lines.iter().flat_map(|(_, values)| values);
        let highest = values.fold(f64::MIN_POSITIVE, |highest, value| highest.max(*value));
        let mut svg = opening(&self.title);
        let group_width = across / self.groups.len().max(1) as f64;
        let bar_width = group_width * 0.8 / self.lines.len().max(1) as f64;
        for (at, group) in self.groups.iter().enumerate() {
            let middle = left + (at as f64 + 0.5) * group_width;
            let _ = writeln!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - below + 16.0,
                escape(group)
            );
        }
        for (nth, (name, values)) in self.lines.iter().enumerate() {
            let colour = COLOURS[nth % COLOURS.len()];
            for (at, value) in values.iter().enumerate() {
                let height = value / highest * up;
                let x = left + (at as f64 + 0.1) * group_width + nth as f64 * bar_width;
                let y = HEIGHT - below - height;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{bar_width:.1}\" \
                     height=\"{height:.1}\" fill=\"{colour}\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"8\" \
                     text-anchor=\"middle\">{value:.0}</text>",
                    x + bar_width / 2.0,
                    y - 3.0
                );
            }
            legend(&mut svg, nth, &format!("{name}, {}", self.unit));
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// The beginning of a picture, with its title.
fn opening(title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"22\" font-size=\"15\">{}</text>\n",
        MARGINS[0],
        escape(title)
    )
}

/// Says beside the field whose colour the n-th is.
fn legend(svg: &mut String, nth: usize, name: &str) {
    let (x, y) = (
        WIDTH - MARGINS[1] + 14.0,
        MARGINS[2] + 10.0 + 20.0 * nth as f64,
    );
    let colour = COLOURS[nth % COLOURS.len()];
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {y}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        x + 24.0,
        y + 4.0,
        escape(name)
    );
}

/// Cost against count, of several contenders.
pub(crate) struct Curves {
    pub(crate) title: String,
    /// What the counts count.
    pub(crate) counted: String,
    /// The unit of the values.
    pub(crate) unit: &'static str,
    pub(crate) counts: Vec<u64>,
    /// Each with a value above zero for each count.
    pub(crate) lines: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Around the field: left, right, above and below.
const MARGINS: [f64; 4] = [70.0, 190.0, 40.0, 50.0];
/// Colours that people who see fewer of them tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = [
    "#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#000000",
];

/// Powers of ten from the one at or below `low` to the one at or above `high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last.max(first + 1))
        .map(|power| 10_f64.powi(power))
        .collect()
}

/// A logarithmic axis between two places of the picture.
struct Axis {
    marks: Vec<f64>,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let marks = decades(low, high);
        Self { marks, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let (low, high) = (
            self.marks[0].log10(),
            self.marks[self.marks.len() - 1].log10(),
        );
        self.from + (value.log10() - low) / (high - low) * (self.to - self.from)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl Curves {
    /// The picture, as SVG.
    pub(crate) fn svg(&self) -> String {
        let [left, right, above, below] = MARGINS;
        let counts = self.counts.iter().map(|&count| count as f64);
        let values = self
            .lines
            .iter()
            .flat_map(|(_, values)| values.iter().copied());
        let across = Axis::new(counts, left, WIDTH - right);
        let up = Axis::new(values, HEIGHT - below, above);
        let mut svg = opening(&self.title);
        for &mark in &across.marks {
            let (x, to) = (across.at(mark), HEIGHT - below);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {above}V{to}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
                to + 16.0
            );
        }
        for &mark in &up.marks {
            let (y, to) = (up.at(mark), WIDTH - right);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {y:.1}H{to}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark} {}</text>",
                left - 6.0,
                y + 4.0,
                self.unit
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (left + WIDTH - right) / 2.0,
            HEIGHT - 12.0,
            escape(&self.counted)
        );
        for (nth, line) in self.lines.iter().enumerate() {
            self.draw(&mut svg, nth, line, (&across, &up));
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, nth: usize, line: &(String, Vec<f64>), axes: (&Axis, &Axis)) {
        let colour = COLOURS[nth % COLOURS.len()];
        let points: Vec<String> = (self.counts.iter().zip(&line.1))
            .map(|(&count, &value)| {
                format!("{:.1},{:.1}", axes.0.at(count as f64), axes.1.at(value))
            })
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        legend(svg, nth, &line.0);
    }

    /// The header and the rows of a table: a row for each count.
    pub(crate) fn table(&self, shown: impl Fn(f64) -> String) -> Vec<Vec<String>> {
        let names = self
            .lines
            .iter()
            .map(|(name, _)| format!("{name}, {}", self.unit));
        let mut table = vec![
            core::iter::once(self.counted.clone())
                .chain(names)
                .collect(),
        ];
        for (at, count) in self.counts.iter().enumerate() {
            let values = self.lines.iter().map(|(_, values)| shown(values[at]));
            table.push(core::iter::once(count.to_string()).chain(values).collect());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_is_as_high_as_the_field() {
        let bars = Picture::Bars(Bars {
            title: "<all>".to_owned(),
            unit: "1/s",
            groups: vec!["one".to_owned(), "two".to_owned()],
            lines: vec![
                ("ours".to_owned(), vec![50.0, 25.0]),
                ("theirs".to_owned(), vec![10.0, 0.0]),
            ],
        });
        let svg = bars.svg();
        let height = |height: &str| svg.matches(&format!("height=\"{height}\"")).count();
        // The field is 330 high.
        assert_eq!(
            (height("330.0"), height("165.0"), height("66.0")),
            (1, 1, 1)
        );
        assert!(svg.contains("&lt;all>") && svg.contains("ours, 1/s"));
        assert_eq!(bars.table(|value| value.to_string()), None);
    }

    #[test]
    fn a_picture_has_a_line_with_a_point_for_each_count() {
        let curves = Curves {
            title: "cost & count".to_owned(),
            counted: "things".to_owned(),
            unit: "ns",
            counts: vec![1, 1000],
            lines: vec![
                ("a".to_owned(), vec![10.0, 100.0]),
                ("b<c".to_owned(), vec![1.0, 10.0]),
            ],
        };
        let svg = curves.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        // From the lowest left to the highest right, and from corner to corner where it fits.
        assert!(svg.contains("points=\"70.0,205.0 530.0,40.0\""), "{svg}");
        assert!(svg.contains("points=\"70.0,370.0 530.0,205.0\""), "{svg}");
        assert!(svg.contains("b&lt;c") && svg.contains("cost &amp; count"));
        let table = curves.table(|value| value.to_string());
        assert_eq!(
            table,
            [
                vec!["things", "a, ns", "b<c, ns"],
                vec!["1", "10", "1"],
                vec!["1000", "100", "10"]
            ]
        );
    }
}
