//! The shapes a series may follow, fitted to block medians with AR(1) noise and weighted by BIC.
//!
//! Each shape is `y_i = y_0 + a + b f(i) + noise`. With the noise's AR(1) coefficient phi fixed on
//! a grid, differencing (Cochrane and Orcutt 1949) turns the fit into ordinary least squares, and
//! averaging over shapes and phi by BIC (Raftery 1995; Hoeting et al. 1999) stands in for choosing
//! one of them. Step and hinge search their change point (segments: Muggeo 2003).

/// Blocks that a fit can have.
pub const BLOCKS: usize = 32;
/// Blocks that a fit needs.
pub const BLOCKS_MIN: usize = 10;
/// Shapes at most: four without a parameter for every phi; queue and exponential for two of them.
pub const SHAPES: usize = 34;
/// Times in the queue's 1/(1 - load), as shares of the blocks.
const QUEUE_SPANS: [f64; 3] = [0.12, 0.35, 1.0];
/// Growth rates over all blocks.
const GROWTHS: [f64; 6] = [-6.0, -3.0, -1.5, 1.5, 3.0, 5.0];
/// Beyond this an exponential is infinite for every purpose; its square still is a number.
const EXPONENT_MAX: f64 = 200.0;

/// How many shapes are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Effort {
    /// 34.
    #[default]
    Full,
    /// 21, at two thirds of the cost: one AR(1) coefficient less.
    Lite,
}

impl Effort {
    fn coefficients(self) -> &'static [f64] {
        match self {
            Self::Full => &[0.0, 0.6, 0.9, 1.0],
            Self::Lite => &[0.0, 0.9, 1.0],
        }
    }
}

/// How a shape goes on: `f` of blocks ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Ahead {
    #[default]
    Flat,
    Line,
    /// Waiting time of a queue whose load grows, which ends in that many blocks (Kleinrock 1975).
    Queue(f64),
    Exponential(f64),
}

impl Ahead {
    fn at(self, t: f64) -> f64 {
        match self {
            Self::Flat => 0.0,
            Self::Line => t,
            Self::Queue(span) if t >= 0.98 * span => 49.0 * span,
            Self::Queue(span) => span * span / (span - t) - span,
            Self::Exponential(k) => ((k * t).min(EXPONENT_MAX).exp() - 1.0) / k,
        }
    }
}

/// A fitted shape: mean `start + slope f(t)` and variance `s0 + s1 (f(t) - centre)^2 + walk t`, `t`
/// blocks ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fit {
    /// Share of belief, all together 1; its logarithm while fitting.
    pub weight: f64,
    /// For how many blocks it has held.
    pub age: f64,
    /// Slope in units of `f`; 0 without one.
    pub slope: f64,
    start: f64,
    s0: f64,
    s1: f64,
    centre: f64,
    walk: f64,
    ahead: Ahead,
}

impl Fit {
    /// Mean, and what of it is trend, `t` blocks ahead.
    pub fn mean(&self, t: f64) -> (f64, f64) {
        let trend = self.slope * self.ahead.at(t);
        (self.start + trend, trend)
    }

    /// Variance `t` blocks ahead: of the parameters and, for a random walk, of its steps.
    pub fn variance(&self, t: f64) -> f64 {
        self.s0 + self.s1 * (self.ahead.at(t) - self.centre).powi(2) + self.walk * t
    }
}

/// All shapes, fitted.
pub struct Fits {
    fits: [Fit; SHAPES],
    len: usize,
}

impl Fits {
    /// Fits every shape to `blocks` (at least [`BLOCKS_MIN`], at most [`BLOCKS`], oldest first).
    /// `variance_min` is what the noise has at least, in a block.
    pub fn new(blocks: &[f64], variance_min: f64, effort: Effort) -> Self {
        let mut all = Self { fits: [Fit::default(); SHAPES], len: 0 };
        for phi in effort.coefficients() {
            let series = Differenced::new(blocks, *phi, variance_min);
            all.push(Some(series.flat()));
            all.push(series.line());
            all.push(series.step());
            all.push(series.hinge());
            if *phi < 0.8 {
                let n = blocks.len() as f64;
                for share in QUEUE_SPANS {
                    all.push(series.curve(Ahead::Queue(share * n)));
                }
                for k in GROWTHS {
                    all.push(series.curve(Ahead::Exponential(k / n)));
                }
            }
        }
        all.normalise();
        all
    }

    /// The shapes.
    pub fn iter(&self) -> impl Iterator<Item = &Fit> {
        self.fits[..self.len].iter()
    }

    fn push(&mut self, fit: Option<Fit>) {
        if let Some(fit) = fit.filter(|fit| fit.weight.is_finite()) {
            self.fits[self.len] = fit;
            self.len += 1;
        }
    }

    fn normalise(&mut self) {
        let fits = &mut self.fits[..self.len];
        let best = fits.iter().map(|fit| fit.weight).fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for fit in fits.iter_mut() {
            fit.weight = (fit.weight - best).exp();
            sum += fit.weight;
        }
        for fit in fits {
            fit.weight /= sum;
        }
    }
}

/// The blocks, differenced by one phi.
struct Differenced<'a> {
    blocks: &'a [f64],
    phi: f64,
    variance_min: f64,
    /// `w[i]`: block `i + 1` less phi times the one before, both less the first.
    w: [f64; BLOCKS],
    /// Sums of w and of its squares.
    sum_w: f64,
    sum_ww: f64,
}

/// Sums of a regression of w on the intercept and on one regressor g.
#[derive(Clone, Copy, Default)]
struct Sums {
    g: f64,
    gg: f64,
    gw: f64,
}

/// Result of a regression; `[va c; c vb]` is the inverse of the normal matrix.
#[derive(Clone, Copy)]
struct Solution {
    a: f64,
    b: f64,
    va: f64,
    vb: f64,
    c: f64,
    sse: f64,
}

impl<'a> Differenced<'a> {
    fn new(blocks: &'a [f64], phi: f64, variance_min: f64) -> Self {
        let mut w = [0.0; BLOCKS];
        let (mut sum_w, mut sum_ww) = (0.0, 0.0);
        for (pair, w) in blocks.windows(2).zip(&mut w) {
            *w = (pair[1] - blocks[0]) - phi * (pair[0] - blocks[0]);
            sum_w += *w;
            sum_ww += *w * *w;
        }
        Self { blocks, phi, variance_min, w, sum_w, sum_ww }
    }

    /// Observations of the regression.
    fn m(&self) -> f64 {
        (self.blocks.len() - 1) as f64
    }

    /// Index of the newest block.
    fn last(&self) -> usize {
        self.blocks.len() - 1
    }

    fn walks(&self) -> bool {
        self.phi >= 1.0
    }

    fn solve(&self, sums: Sums) -> Option<Solution> {
        if self.walks() {
            if sums.gg <= 0.0 {
                return None;
            }
            let b = sums.gw / sums.gg;
            let sse = (self.sum_ww - b * sums.gw).max(0.0);
            return Some(Solution { a: 0.0, b, va: 0.0, vb: 1.0 / sums.gg, c: 0.0, sse });
        }
        let q = 1.0 - self.phi;
        let (qq, qg, qw) = (q * q * self.m(), q * sums.g, q * self.sum_w);
        let determinant = qq * sums.gg - qg * qg;
        if determinant.is_nan() || determinant < 1e-12 * qq * sums.gg || determinant <= 0.0 {
            return None;
        }
        let (va, vb, c) = (sums.gg / determinant, qq / determinant, -qg / determinant);
        let (a, b) = (va * qw + c * sums.gw, c * qw + vb * sums.gw);
        Some(Solution { a, b, va, vb, c, sse: (self.sum_ww - a * qw - b * sums.gw).max(0.0) })
    }

    /// The regression on `f`, given block by block.
    fn regress(&self, f: impl Iterator<Item = f64>) -> Option<Solution> {
        let mut sums = Sums::default();
        let mut before = None;
        for (f, index) in f.zip(0..self.blocks.len()) {
            if let Some(before) = before {
                let g = f - self.phi * before;
                sums.g += g;
                sums.gg += g * g;
                sums.gw += g * self.w[index - 1];
            }
            before = Some(f);
        }
        self.solve(sums)
    }

    /// A fit with `parameters`, of what is left and the prior's logarithm: weight and noise.
    fn weigh(&self, sse: f64, parameters: f64, prior: f64) -> (f64, f64) {
        let m = self.m();
        let n = self.blocks.len() as f64;
        let weight = -(m / 2.0) * (sse / m + self.variance_min).ln() - parameters / 2.0 * n.ln() + prior;
        (weight, (sse + self.variance_min * m) / (m - parameters).max(2.0))
    }

    fn flat(&self) -> Fit {
        let last = self.blocks[self.last()];
        if self.walks() {
            let (weight, v) = self.weigh(self.sum_ww, 0.0, 0.0);
            return Fit { weight, start: last, walk: v, ..Fit::default() };
        }
        let (m, q) = (self.m(), 1.0 - self.phi);
        let a = self.sum_w / (m * q);
        let sse = (self.sum_ww - self.sum_w * self.sum_w / m).max(0.0);
        let (weight, v) = self.weigh(sse, 1.0, 0.0);
        Fit { weight, start: self.blocks[0] + a, s0: v / (q * q * m), ..Fit::default() }
    }

    fn line(&self) -> Option<Fit> {
        let solution = self.regress((0..self.blocks.len()).map(|i| i as f64))?;
        Some(self.sloped(solution, 2.0, -1.0, self.last() as f64))
    }

    /// A line for its last `age` blocks.
    fn sloped(&self, solution: Solution, parameters: f64, prior: f64, age: f64) -> Fit {
        let Solution { a, b, va, vb, c, sse } = solution;
        let (weight, v) = self.weigh(sse, parameters, prior);
        let fit = Fit { weight, age, slope: b, s1: v * vb, ahead: Ahead::Line, ..Fit::default() };
        if self.walks() {
            return Fit { start: self.blocks[self.last()], walk: v, ..fit };
        }
        Fit {
            start: self.blocks[0] + a + b * age,
            s0: (v * (va - c * c / vb)).max(0.0),
            centre: -(age + c / vb),
            ..fit
        }
    }

    fn step(&self) -> Option<Fit> {
        let n = self.blocks.len();
        if n < 12 {
            return None;
        }
        let q = 1.0 - self.phi;
        // From the newest block on: the sum of w after the step.
        let mut after = self.w[n - 2];
        let mut best: Option<Solution> = None;
        for j in (2..=n - 2).rev() {
            let later = (n - 1 - j) as f64;
            let at = self.w[j - 1];
            let sums = Sums { g: 1.0 + q * later, gg: 1.0 + q * q * later, gw: at + q * after };
            after += at;
            best = better(best, self.solve(sums));
        }
        let Solution { a, b, va, vb, c, sse } = best?;
        let (weight, v) = self.weigh(sse, 3.0, 0.0);
        Some(if self.walks() {
            Fit { weight, start: self.blocks[n - 1], walk: v, ..Fit::default() }
        } else {
            let s0 = (v * (va + vb + 2.0 * c)).max(0.0);
            Fit { weight, start: self.blocks[0] + a + b, s0, ..Fit::default() }
        })
    }

    fn hinge(&self) -> Option<Fit> {
        let n = self.blocks.len();
        let q = 1.0 - self.phi;
        // Of w after the hinge, from the newest block on: the sum, and the sum weighted by the
        // distance from the hinge.
        let (mut after, mut moment) = (0.0, 0.0);
        let mut best: Option<(f64, Solution)> = None;
        for j in (2..n - 1).rev() {
            after += self.w[j];
            moment += after;
            if j > n - 7 {
                continue;
            }
            let m = (n - 1 - j) as f64;
            let (first, second) = (m * (m + 1.0) / 2.0, m * (m + 1.0) * (2.0 * m + 1.0) / 6.0);
            // g at distance d is q d + phi.
            let sums = Sums {
                g: q * first + self.phi * m,
                gg: q * q * second + 2.0 * q * self.phi * first + self.phi * self.phi * m,
                gw: q * moment + self.phi * after,
            };
            if let Some(solution) = self.solve(sums)
                && best.is_none_or(|(_, best)| solution.sse < best.sse)
            {
                best = Some((m, solution));
            }
        }
        let (m, solution) = best?;
        Some(self.sloped(solution, 3.0, -1.0, m))
    }

    /// Queue or exponential: `f` of blocks before the newest.
    fn curve(&self, ahead: Ahead) -> Option<Fit> {
        let last = self.last() as f64;
        let solution = match ahead {
            Ahead::Exponential(k) => {
                // A geometric row: one power for all blocks.
                let (ratio, mut power) = (k.exp(), (-k * last).exp());
                self.regress(std::iter::repeat_with(|| {
                    let f = (power - 1.0) / k;
                    power *= ratio;
                    f
                }))
            }
            _ => self.regress((0..self.blocks.len()).map(|i| ahead.at(i as f64 - last))),
        }?;
        let Solution { a, b, va, vb, c, sse } = solution;
        let (weight, v) = self.weigh(sse, 3.0, -1.7);
        let age = match ahead {
            Ahead::Queue(span) => (2.0 * span).min(last),
            Ahead::Exponential(k) if k > 0.0 => (1.5 / k).min(last),
            _ => last,
        };
        Some(Fit {
            weight,
            age,
            slope: b,
            start: self.blocks[0] + a,
            s0: (v * (va - c * c / vb)).max(0.0),
            s1: v * vb,
            centre: -c / vb,
            walk: 0.0,
            ahead,
        })
    }
}

fn better(best: Option<Solution>, next: Option<Solution>) -> Option<Solution> {
    match (best, next) {
        (Some(best), Some(next)) if next.sse < best.sse => Some(next),
        (None, next) => next,
        (best, _) => best,
    }
}
