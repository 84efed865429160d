"""The ROS side: conversion, parameters, QoS, diagnostics, the lifecycle base."""
