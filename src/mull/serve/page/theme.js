// Before anything is drawn: the colours that were chosen last time. Without a choice they are the system's.
"use strict";
{
  const chosen = localStorage.getItem("mull-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
