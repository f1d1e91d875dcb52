// Follows the theme chosen in Airflow, which frames the page; without it, the browser's.
const theme = () => {
  for (const page of [document, document.querySelector("iframe")?.contentDocument])
    if (page?.documentElement) page.documentElement.dataset.theme = localStorage.getItem("theme") || "system";
};
theme();
addEventListener("storage", theme);

addEventListener("DOMContentLoaded", () => {
  const report = document.querySelector("iframe");
  const shown = () => { theme(); report.classList.add("ready") };
  report?.addEventListener("load", shown);
  if (report?.contentDocument?.readyState === "complete" && report.contentDocument.URL !== "about:blank") shown();

  for (const choice of document.querySelectorAll("select")) choice.addEventListener("change", () => choice.form.requestSubmit());

  const dialog = document.querySelector("dialog");
  if (!dialog) return;
  const [form, told, go] = [dialog.querySelector("form"), dialog.querySelector("[role=alert]"), dialog.querySelector(".primary")];
  for (const button of document.querySelectorAll("button[data-version]"))
    button.addEventListener("click", () => {
      form.elements.version.value = dialog.querySelector("code").textContent = button.dataset.version;
      told.textContent = "";
      dialog.showModal();
    });
  dialog.querySelector("[data-cancel]").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    told.textContent = "Loading its lists; this can take a minute.";
    try {
      const body = JSON.stringify({ version: form.elements.version.value, reason: form.elements.reason.value });
      const answer = await fetch(form.action, { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (answer.ok) return location.reload();
      const { detail } = await answer.json();
      told.textContent = typeof detail === "string" ? detail : "The reason must have 1 to 500 characters.";
    } catch (error) {
      told.textContent = `No answer from Airflow: ${error.message}`;
    }
    go.disabled = false;
  });
});
