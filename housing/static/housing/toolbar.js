// Opens the Debug Toolbar on the pages of the API, where the number of queries is the point, and collapses it on all others.
// An open toolbar has a column beside the page. toolbar.css has the rest of the layout.
{
  const api = location.pathname.startsWith("/api/properties/");
  const choice = `djdt.show.${api ? "api" : "others"}`;
  // The toolbar reads and writes one choice for all pages.
  localStorage.setItem("djdt.show", localStorage.getItem(choice) ?? api);

  document.addEventListener("DOMContentLoaded", () => {
    // The admin's container is as high as the screen, so a longer page would continue under the toolbar.
    document.getElementById("container")?.style.setProperty("height", "auto");
    const toolbar = document.getElementById("djDebugRoot").shadowRoot.getElementById("djDebugToolbar");
    for (const box of toolbar.querySelectorAll("input")) box.ariaLabel = `${box.parentElement.id.replace("djdt-", "")}: ${box.title}`;
    new ResizeObserver(() => {
      localStorage.setItem(choice, localStorage.getItem("djdt.show"));
      const beside = getComputedStyle(toolbar).position === "fixed";
      document.documentElement.style.paddingInlineEnd = `${beside ? toolbar.offsetWidth : 0}px`;
    }).observe(toolbar);
  });
}
