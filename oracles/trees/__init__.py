"""Dependency trees and spanning trees: their polytopes, oracles, and Gibbs distributions by the matrix-tree theorem."""
