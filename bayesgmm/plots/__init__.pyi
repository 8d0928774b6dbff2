from .assignments import plot_assignments as plot_assignments
from .criteria import plot_criteria as plot_criteria
from .parameters import plot_posterior_parameters as plot_posterior_parameters
from .posterior import plot_posterior_ellipses as plot_posterior_ellipses
from .prior import plot_prior_predictive as plot_prior_predictive
from .traces import plot_traces as plot_traces
from .uncertainty import plot_responsibility_uncertainty as plot_responsibility_uncertainty
